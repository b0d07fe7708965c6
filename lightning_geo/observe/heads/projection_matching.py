"""Match an attention's queries, keys and values with the outputs of the linear modules that ran before it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.heads.projections import Source, effective_weight
from lightning_geo.observe.layers.linear_run import LinearRun

__all__ = ["find_sources"]

#: Names of separate projections, if nothing else distinguishes queries from keys.
_NAMES = {"query": r"^(to_)?q(uery)?(_proj|_lin)?$", "key": r"^(to_)?k(ey)?(_proj|_lin)?$"}

#: Relative differences that rounding explains, in float32 and in half precision.
_CLOSE, _CLOSE_HALF = 2e-3, 3e-2


class _Candidate(NamedTuple):
    """Heads in one run's output that may be a role's heads."""

    run: LinearRun
    role: str  # the role in this layout; "" for a whole output
    source: Source
    layout: str


def find_sources(runs: Sequence[LinearRun], call: AttentionCall) -> dict[str, Source]:
    """Find the linear modules that computed an attention's queries, keys and values.

    Args:
        runs: Runs of linear modules in the attention module, before the attention.
        call: The attention.

    Returns:
        The source of every role that was found.
    """
    matches: dict[str, _Candidate] = {}
    observed = {"value": call.value, "query": call.query, "key": call.key}
    for role, x in observed.items():
        if x is None:
            continue
        heads = call.scores.shape[1] if call.scores is not None else x.shape[1]
        if call.query is not None:
            heads = call.query.shape[1]
        candidates = [c for run in runs for c in _candidates(run, x, heads, role)]
        # Compare runs by identity: `==` would compare their tensors, which have no truth value.
        taken = [(id(one.run), one.source.indices) for one in matches.values()]
        free = [c for c in candidates if (id(c.run), c.source.indices) not in taken]
        match = next((c for c in candidates if _same(c, x)), None)
        if match is None and role != "value":
            match = next((c for c in free if _same_lengths(c, x)), None)
            value = matches.get("value")
            if match is None and value is not None:
                match = next((c for c in free if _by_convention(c, role, value)), None)
        if match is not None:
            matches[role] = match
    return {role: candidate.source for role, candidate in matches.items()}


def _candidates(run: LinearRun, observed: Tensor, heads: int, role: str) -> Iterator[_Candidate]:
    """Yield whole outputs of the right size, and parts of fused outputs."""
    if effective_weight(run.module) is None:
        return
    features, size = run.y.shape[-1], observed.shape[3]
    if features % size:
        return
    units = features // size
    for layout, places_by_part in _layouts(units, heads):
        if not places_by_part:
            if heads % units == 0 and (role != "query" or units == heads):
                yield _Candidate(run, "", Source(run.module, units), layout)
            continue
        for name, places in places_by_part.items():
            if (len(places) == heads) if role == "query" else (heads % len(places) == 0):
                yield _Candidate(run, name, Source(run.module, len(places), tuple(places), units), layout)


def _layouts(units: int, heads: int) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """Yield layouts of roles in an output of ``units`` heads: name, and role -> indices."""
    yield "whole", {}
    every = list(range(units))
    shared, rest = divmod(units - heads, 2)
    if shared > 0 and rest == 0 and heads % shared == 0:
        group = heads // shared + 2
        yield "blocks", {"query": every[:heads], "key": every[heads : heads + shared],
                         "value": every[heads + shared :]}  # fmt: skip
        yield (
            "groups",
            {
                "query": [u for u in every if u % group < group - 2],
                "key": every[group - 2 :: group],
                "value": every[group - 1 :: group],
            },
        )
    if units % 2 == 0 and heads % (units // 2) == 0:
        yield "halves", {"key": every[: units // 2], "value": every[units // 2 :]}
        yield "pairs", {"key": every[::2], "value": every[1::2]}


def _heads_of(candidate: _Candidate, observed: Tensor) -> Tensor | None:
    """Return the first sequence's heads ``[n, h, D]``, repeated to the attention's number of heads."""
    batch, heads, tokens, size = observed.shape
    y, source = candidate.run.y, candidate.source
    if y.numel() != batch * tokens * y.shape[-1] or heads % source.heads:
        return None
    y = source.of_heads(y.reshape(batch, tokens, -1, size)[0], 1)
    return y.repeat_interleave(heads // source.heads, dim=1)


def _same(candidate: _Candidate, observed: Tensor) -> bool:
    y = _heads_of(candidate, observed)
    x = observed[0].transpose(0, 1)
    return y is not None and torch.allclose(y.to(x.dtype), x, equal_nan=True)


def _same_lengths(candidate: _Candidate, observed: Tensor) -> bool:
    """Whether vectors have equal lengths up to a common factor, as after rotation or scaling."""
    y = _heads_of(candidate, observed)
    if y is None or y.numel() == 0:
        return False
    ours = torch.linalg.vector_norm(y.float(), dim=-1)
    theirs = torch.linalg.vector_norm(observed[0].transpose(0, 1).float(), dim=-1)
    ratio = theirs / ours
    middle = ratio.median()
    half = torch.finfo(observed.dtype).bits < 32
    close = (ratio - middle).abs() <= (_CLOSE_HALF if half else _CLOSE) * middle
    # Many vectors share a ratio only if they are the same vectors; a single one always does.
    return bool(close.all()) and ratio.numel() > 1


def _by_convention(candidate: _Candidate, role: str, value: _Candidate) -> bool:
    if candidate.layout == "whole":
        return value.layout == "whole" and re.match(_NAMES[role], candidate.run.name) is not None
    return candidate.role == role and candidate.run == value.run and candidate.layout == value.layout
