"""``lightning-geo --print-completion``: a script with which a shell completes commands, options and paths."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_geo.utils.errors import RunError

__all__ = ["SHELLS", "PrintCompletion", "completion_script"]

SHELLS = ("bash", "zsh", "tcsh")

#: What an argument is, by its placeholder in the help.
_DIRECTORIES, _FILES = ("RUN", "MODEL"), ("FILE", "LEDGER")


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a shell.

    Args:
        parser: The parser of the whole command.
        shell: One of :data:`SHELLS`.

    Raises:
        RunError: If shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise RunError("Completion needs shtab: pip install 'lightning-geo[completion]'.") from error
    for action in _actions(parser):
        if action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY
        elif action.metavar in _FILES:
            action.complete = shtab.FILE
    return str(shtab.complete(parser, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Every option and argument, those of commands included."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


class PrintCompletion(argparse.Action):
    """Prints the script and ends, as ``--version`` does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            print(completion_script(parser, str(values)))
        except RunError as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
        parser.exit()
