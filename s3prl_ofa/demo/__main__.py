"""``python -m s3prl_ofa.demo``; ``make demo`` calls it."""

import sys

from s3prl_ofa.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
