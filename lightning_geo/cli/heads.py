"""``lightning-geo heads``: which heads a run could do without, and why."""

from __future__ import annotations

import json

from lightning_geo.analysis.pruning import PruningPlan
from lightning_geo.utils.formatting import number, plain, table

__all__ = ["as_json", "as_text"]


def as_text(name: str, plan: PruningPlan) -> str:
    """Return the ranking with a line where the plan ends."""
    several = len(plan.structure) > 1
    header = ("", "layer", "head", "importance", "score", "why")
    rows = []
    for place, ranked in enumerate(plan.ranking):
        layer = f"{ranked.head.stack}/{ranked.head.layer}" if several else str(ranked.head.layer)
        rows.append(
            ("remove" if place < plan.count else "keep", plain(layer), str(ranked.head.head),
             number(ranked.importance), number(ranked.score), ranked.reason)
        )  # fmt: skip
    # the reasons are sentences: to the left, after numbers that are not
    lines = table(header[:-1], [row[:-1] for row in rows], left=1).split("\n")
    whys = [header[-1], *(row[-1] for row in rows)]
    width = max(map(len, lines))
    body = [f"{line.ljust(width)}  {why}" for line, why in zip(lines, whys, strict=True)]
    how = (
        "importance, less up to half of it where another head says the same"
        if plan.similarities
        else "importance alone: this sample kept no similarity of heads"
    )
    return "\n".join(
        (
            f"{plain(name)}, step {plan.step}: {plan.count} of {len(plan.ranking)} heads to remove, in this "
            f"order, by {how}.",
            "A guess to first order: lightning_geo.evaluate_plan(model, dataloader, plan, metric) checks it.",
            "",
            *body,
        )
    )


def as_json(name: str, plan: PruningPlan) -> str:
    """Return everything as one JSON object."""
    ranking = [
        {**r.head._asdict(), "remove": place < plan.count, "importance": r.importance, "score": r.score,
         "similar": r.similar, "similarity": None if r.similar is None else r.similarity, "why": r.reason}
        for place, r in enumerate(plan.ranking)
    ]  # fmt: skip
    facts = {"run": name, "step": plan.step, "count": plan.count, "similarities": plan.similarities}
    return json.dumps({**facts, "ranking": ranking}, indent=1)
