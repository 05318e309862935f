"""The arguments of ``s3prl-ofa completion``."""

from s3prl_ofa.arguments.parser import Parser

SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: Parser) -> None:
    parser.examples = (
        "s3prl-ofa completion bash > ~/.local/share/bash-completion/completions/s3prl-ofa",
        "s3prl-ofa completion zsh > ~/.zfunc/_s3prl-ofa   # a folder in fpath",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")
