"""Limits on the recorded calls in a probe: a number of sequences, and of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_geo.probe.call import ProbeCall

__all__ = ["SCORED_SEQUENCES", "within", "within_over_ranks"]

#: Number of sequences whose single scores are measured: over all ranks in a probe, on each rank in a training
#: batch.
SCORED_SEQUENCES = 2


def within(
    before: Sequence[ProbeCall], call: ProbeCall, size: int, tokens: int | None
) -> tuple[list[ProbeCall], bool]:
    """Return the part of one more call that a probe keeps, cut between sequences.

    Sequences are kept in order until the next one would exceed a limit. The first is always kept, at any
    length. Rows of documents are cut between documents, if a single row can be divided. A call that cannot
    be divided is kept whole while there are fewer than ``size`` sequences; one that exceeds ``tokens`` is
    kept only if it is the first.

    Args:
        before: Calls of the same model kept so far.
        call: The next one.
        size: Maximum number of sequences.
        tokens: Maximum number of real tokens; None for no limit.

    Returns:
        No call, one or two, and whether the probe is complete.
    """
    kept: list[ProbeCall] = []
    sequences = sum(sum(c.sequences.counts) for c in before)
    used = sum(sum(c.sequences.tokens) for c in before)
    if sequences >= size:
        return kept, True
    fits = 0
    for count, length in call.sequences.parts:
        first = not before and fits == 0
        long = tokens is not None and used + length > tokens
        too_much = long or (call.divisible and sequences + count > size)
        if too_much and not (first and (count == 1 or not call.divisible)):
            break
        fits, sequences, used = fits + 1, sequences + count, used + length
    whole = fits == len(call.sequences.counts)
    if fits:
        kept.append(call if whole else call.take(slice(fits)))
    if whole:
        return kept, sequences >= size or (tokens is not None and used >= tokens)
    if call.sequences.counts[fits] > 1:  # a row of documents
        row = call.take(slice(fits, fits + 1))
        if row.sequences.documents is not None:
            kept += within([*before, *kept], row, size, tokens)[0]
        elif not before and not kept:
            kept.append(row)
    return kept, True


def within_over_ranks(
    everyone: Sequence[Sequence[ProbeCall]], size: int, tokens: int | None
) -> list[list[ProbeCall]]:
    """Return the recorded calls that a probe keeps, the same sequences on any number of ranks.

    A distributed sampler deals sequences out in turn. They are counted in the same order: the first of every
    rank, then the second of every rank.

    Args:
        everyone: Calls by rank.
        size: Maximum number of sequences per model.
        tokens: Maximum number of real tokens per model; None for no limit.
    """
    if len(everyone) == 1:
        return [_prefix(everyone[0], size, tokens)]
    taken: list[dict[str, int]] = [{} for _ in everyone]
    for model in dict.fromkeys(call.model for calls in everyone for call in calls):
        parts = [
            [part for c in calls if c.model == model for part in c.sequences.parts] for calls in everyone
        ]
        for rank, count in enumerate(_dealt_out(parts, size, tokens)):
            taken[rank][model] = count
    return [_first_parts(calls, counts) for calls, counts in zip(everyone, taken, strict=True)]


def _prefix(calls: Sequence[ProbeCall], size: int, tokens: int | None) -> list[ProbeCall]:
    kept: list[ProbeCall] = []
    complete: set[str] = set()
    for call in calls:
        if call.model not in complete:
            parts, done = within([c for c in kept if c.model == call.model], call, size, tokens)
            kept += parts
            if done:
                complete.add(call.model)
    return kept


def _dealt_out(parts: Sequence[Sequence[tuple[int, int]]], size: int, tokens: int | None) -> list[int]:
    """Count the parts (sequences, tokens) that each rank keeps when all ranks are counted in turn."""
    taken = [0] * len(parts)
    sequences = used = 0
    for turn in range(max(map(len, parts))):
        for rank in (rank for rank, own in enumerate(parts) if turn < len(own)):
            count, length = parts[rank][turn]
            long = tokens is not None and used + length > tokens
            if sequences >= size or (long and sequences):
                return taken
            taken[rank], sequences, used = taken[rank] + 1, sequences + count, used + length
    return taken


def _first_parts(calls: Sequence[ProbeCall], counts: dict[str, int]) -> list[ProbeCall]:
    kept, left = [], dict(counts)
    for call in calls:
        count = left[call.model]
        if count > 0:
            kept.append(call if count >= call.rows or not call.divisible else call.take(slice(count)))
        left[call.model] -= len(call.sequences.parts)
    return kept
