"""``lightning-geo heads``: which heads could be pruned, and why."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lightning_geo.analysis.pruning import PruningPlan, pruning_plan
from lightning_geo.cli.command import add_command, read_run
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.formatting import number
from lightning_geo.utils.tables import table, terminal_width, wrapped

__all__ = ["add_parser", "as_json", "as_text"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "heads", _run, "rank the heads that could be pruned, with the reason")
    parser.add_argument("run", metavar="RUN", help="directory of one run that measured importance")
    parser.add_argument(
        "--fraction", type=float, default=0.3, help="share of all heads to remove (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def _run(options: argparse.Namespace) -> int:
    run = read_run(options.run, options.monitor)
    try:
        plan = pruning_plan(run.history, options.fraction)
    except ValueError as error:
        raise RunError(str(error)) from error
    form = as_json if options.json else as_text
    print(form(run.name, plan))
    return 0


def as_text(name: str, plan: PruningPlan) -> str:
    """Return the ranking as a table, the heads to remove first."""
    several = len(plan.structure) > 1
    header = ("", "layer", "head", "importance", "score", "why")
    rows = []
    for place, ranked in enumerate(plan.ranking):
        layer = f"{ranked.head.stack}/{ranked.head.layer}" if several else str(ranked.head.layer)
        rows.append(
            ("remove" if place < plan.count else "keep", layer, str(ranked.head.head),
             number(ranked.importance), number(ranked.score), ranked.reason)
        )  # fmt: skip
    how = (
        "increasing importance; a head that duplicates another in its layer is discounted by up to half"
        if plan.similarities
        else "increasing importance alone; this sample stored no similarities of heads"
    )
    width = terminal_width()
    cells = table(header, rows, least={"layer": 12, "why": 30}, wrap="why", width=width)
    title = (
        f"{name}, step {plan.step}: {plan.count} of {len(plan.ranking)} heads to remove, in order of {how}."
    )
    note = (
        "This is a first-order estimate. Check it with "
        "lightning_geo.evaluate_plan(model, dataloader, plan, metric)."
    )
    return f"{wrapped(title, width)}\n{wrapped(note, width)}\n\n{cells}"


def as_json(name: str, plan: PruningPlan) -> str:
    """Return everything as one JSON object."""
    ranking = [
        {**r.head._asdict(), "remove": place < plan.count, "importance": r.importance, "score": r.score,
         "similar": r.similar, "similarity": None if r.similar is None else r.similarity, "why": r.reason}
        for place, r in enumerate(plan.ranking)
    ]  # fmt: skip
    facts = {"run": name, "step": plan.step, "count": plan.count, "similarities": plan.similarities}
    return json.dumps({**facts, "ranking": ranking}, indent=1)
