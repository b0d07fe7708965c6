"""``lightning-geo report``: one HTML file about a run, or about several against the first."""

from __future__ import annotations

import argparse
from typing import Any

from lightning_geo.cli.command import RUN, add_command, add_output, read_runs, write_page
from lightning_geo.report.page import report

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "report", _run, "write one HTML file on what changed, where and when")
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"{RUN}; several are compared with the first")
    add_output(parser, "report.html")


def _run(options: argparse.Namespace) -> int:
    write_page(options.output, report(read_runs(options.runs, options.monitor)))
    return 0
