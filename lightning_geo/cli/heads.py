"""``lightning-geo heads``: which heads could be pruned, and why; without importance, which repeat others."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lightning_geo.analysis.pruning import PruningPlan, last_sample_with, pruning_plan
from lightning_geo.analysis.redundancy_ranking import RedundancyRanking, redundancy_ranking
from lightning_geo.cli.command import add_command, put, read_run
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.formatting import number
from lightning_geo.utils.tables import table, terminal_width, wrapped

__all__ = ["add_parser", "as_json", "as_text"]


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "heads", _run, "rank the heads that could be pruned, with the reason")
    parser.add_argument("run", metavar="RUN", help="directory of one run; best one that measured importance")
    parser.add_argument(
        "--fraction",
        type=float,
        default=0.3,
        help="share of all heads to remove, or to list without importance (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def _run(options: argparse.Namespace) -> int:
    run = read_run(options.run, options.monitor)
    try:
        if last_sample_with(run.history, "importance") is None:
            ranking = redundancy_ranking(run.history, options.fraction)
            put((_redundancy_as_json if options.json else _redundancy_as_text)(run.name, ranking))
        else:
            plan = pruning_plan(run.history, options.fraction)
            put((as_json if options.json else as_text)(run.name, plan))
    except ValueError as error:
        raise RunError(str(error)) from error
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


def _redundancy_as_text(name: str, redundancy: RedundancyRanking) -> str:
    """Return the heads that repeat another one most, and what importance would add. Nothing to remove yet."""
    several = len({ranked.head.stack for ranked in redundancy.ranking}) > 1
    rows = []
    for ranked in redundancy.ranking[: redundancy.count]:
        stack, layer, head = ranked.head
        place = (f"{stack}/{layer}" if several else str(layer), str(head))
        value = ranked.similarity if redundancy.similarities else ranked.redundancy
        other = "" if ranked.similar is None else f"head {ranked.similar}"
        rows.append((*place, number(value), *[other] * redundancy.similarities))
    width = terminal_width()
    header: tuple[str, ...] = ("layer", "head", "similarity", "most like")
    count, total = redundancy.count, len(redundancy.ranking)
    if redundancy.similarities:
        how = "Each is compared with the heads of its layer that rank lower, so that twins are named once."
    else:
        how = "This sample did not store which heads are alike: both heads of a pair are listed."
        header = header[:-1]
    lines = [
        f"{name}, step {redundancy.step}: the {count} of {total} heads that are most like another one of "
        f"their layer (linear CKA of the outputs, 1 is a twin). {how}",
        "This run has no `importance`, so this is no order of removal: a head like another one may still be "
        "needed. With importance this command says what removing each head should cost, and which of two "
        'like heads can go. Record it with GeometryMonitor(metrics=["importance", "head", ...]).',
    ]
    cells = table(header, rows, left=("most like",), least={"layer": 12}, width=width)
    return "\n".join([*(wrapped(line, width) for line in lines), "", cells])


def _redundancy_as_json(name: str, redundancy: RedundancyRanking) -> str:
    """Return all heads as one JSON object, without the keys of a plan: no script may take it for one."""
    ranking = [
        {**r.head._asdict(), "redundancy": r.redundancy, "similar": r.similar,
         "similarity": None if r.similar is None else r.similarity}
        for r in redundancy.ranking
    ]  # fmt: skip
    facts = {"run": name, "step": redundancy.step, "by": "redundancy", "missing": "importance",
             "listed": redundancy.count, "similarities": redundancy.similarities}  # fmt: skip
    return json.dumps({**facts, "ranking": ranking}, indent=1)
