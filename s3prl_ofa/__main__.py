"""``python -m s3prl_ofa <command>``, the same as ``s3prl-ofa <command>``."""

import sys

from s3prl_ofa.cli import main

if __name__ == "__main__":
    sys.exit(main())
