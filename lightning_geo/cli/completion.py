"""``lightning-geo --print-completion``: a script with which a shell completes commands, options and paths."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

__all__ = ["SHELLS", "Parser", "PrintCompletion"]

SHELLS = ("bash", "zsh", "tcsh")

#: The kind of an argument for shtab, by its placeholder in the help.
_PATHS = {"RUN": "directory", "MODEL": "directory", "FILE": "file", "LEDGER": "file"}


class Parser(argparse.ArgumentParser):
    """A parser that knows which of its arguments are paths; its commands' parsers are of this class too."""

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an argument as :class:`argparse.ArgumentParser` does."""
        action = super().add_argument(*args, **kwargs)
        if action.metavar in _PATHS:
            action.complete = _PATHS[action.metavar]  # type: ignore[attr-defined]
        return action


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
            import shtab
        except ImportError:
            parser.exit(2, f"{parser.prog}: This needs shtab: pip install 'lightning-geo[completion]'.\n")
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()
