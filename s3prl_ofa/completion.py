"""``s3prl-ofa completion SHELL``: a script that lets a shell complete commands, options, choices and files."""

import argparse

import shtab

from s3prl_ofa.arguments.parser import Parser
from s3prl_ofa.cli import COMMANDS, PROG, add_command_arguments


def run(args: argparse.Namespace) -> int:
    tree = Parser(prog=PROG)
    commands = tree.add_subparsers()
    for name, command in COMMANDS.items():
        add_command_arguments(name, commands.add_parser(name, help=command.help))
    complete_files(tree)
    print(shtab.complete(tree, args.shell))
    return 0


def complete_files(parser: argparse.ArgumentParser) -> None:
    """Completes every value without choices as a file name: most are paths."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                complete_files(subparser)
        elif action.choices is None and action.nargs != 0:
            action.complete = shtab.FILE
