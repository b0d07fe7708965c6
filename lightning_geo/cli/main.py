"""The command ``lightning-geo``: look at runs, check and compare them. No torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lightning_geo._version import __version__
from lightning_geo.cli import audit, compare, diagnose, explain, heads, report, show, tail, wandb_view
from lightning_geo.cli.completion import SHELLS, Parser, PrintCompletion
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.formatting import plain

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program's name; ``None`` for ``sys.argv``.

    Returns:
        0 on success; 1 if a limit of ``--fail-above`` or of a policy was exceeded, ``diagnose`` has a
        critical finding, or a ledger is not intact; 2 on bad input; 130 after Ctrl-C, but 0 of ``tail``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without × shows ?
    options = _parser().parse_args(arguments)
    try:
        status: int = options.function(options)
    except RunError as error:
        print(f"lightning-geo {options.command}: {plain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `lightning-geo tail run | head` closes the pipe; Python's own flush at exit would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    description = "Look at recorded runs, check and compare them, and find heads to prune."
    parser = Parser(prog="lightning-geo", description=description)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    text = f"print a script that completes this command in {', '.join(SHELLS[:-1])} or {SHELLS[-1]}"
    parser.add_argument("--print-completion", action=PrintCompletion, choices=SHELLS, help=text)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (show, diagnose, audit, compare, report, tail, heads, explain, wandb_view):
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
