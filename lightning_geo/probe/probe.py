"""The probe: the calls of the observed models that are replayed at every sample."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.replay.undisturbed_run import Call
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.limits import SCORED_SEQUENCES, within, within_over_ranks
from lightning_geo.utils.errors import ArgumentTypeError

__all__ = ["LOSS_DIVISOR", "Probe", "Share", "copied", "kept_call", "probe_from"]


#: What transformers divides a loss by instead of the call's own tokens: those of all batches of a step. It is
#: no input, and on a few sequences the loss would be too small by what the others had.
LOSS_DIVISOR = "num_items_in_batch"


@dataclass
class Share:
    """One rank's share of the probe.

    Args:
        calls: The rank's own calls.
        uncounted: One call of each kind that the rank lacks, run but not counted: ranks can merge results
            only if they have the same layers.
        rounds: By kind, in the order of the probe, how many calls the rank with most of them has: uncounted
            ones and its own. Empty where all ranks have the same calls.
    """

    calls: list[ProbeCall]
    uncounted: list[ProbeCall] = field(default_factory=list)
    rounds: dict[tuple[object, ...], tuple[int, int]] = field(default_factory=dict)

    def to(self, device: torch.device) -> Share:
        """Move its tensors."""
        calls, uncounted = ([c.to(device) for c in some] for some in (self.calls, self.uncounted))
        return Share(calls, uncounted, self.rounds)


class Probe:
    """The inputs on which samples are taken.

    Args:
        calls: Calls of all ranks, in order. If they do not say which sequences are scored, the first ones of
            each model are.
    """

    def __init__(self, calls: Sequence[ProbeCall]) -> None:
        known = all(call.scored is not None for call in calls)
        self.calls = list(calls) if known else _with_scored([calls])[0]
        digests = sorted(d for call in self.calls for d in call.digests())
        #: equal for equal inputs in any order, with any padding and from any number of ranks
        self.fingerprint = hashlib.sha256(b"".join(digests)).hexdigest()[:16] if digests else ""

    @property
    def models(self) -> list[str]:
        """Prefixes of the observed models."""
        return list(dict.fromkeys(call.model for call in self.calls))

    def share(self, rank: int, world_size: int) -> Share:
        """Return one rank's share: every ``world_size``-th sequence, counted through all calls of a model.

        A call that cannot be divided counts as one.
        """
        own, uncounted = self._dealt(rank, world_size)
        calls = [
            call if rows is None else replace(call.take(rows), scored=call.scored_in(rows))
            for call, rows in own
        ]
        first = [replace(call.take(slice(1)), scored=0) for call in uncounted]
        return Share(calls, first, self._rounds(world_size))

    def _dealt(self, rank: int, size: int) -> tuple[list[tuple[ProbeCall, slice | None]], list[ProbeCall]]:
        """Return a rank's calls, with their parts or None for all of them, and those that it lacks."""
        own: list[tuple[ProbeCall, slice | None]] = []
        others: dict[tuple[object, ...], ProbeCall] = {}
        dealt: dict[str, int] = {}
        for call in self.calls:
            before = dealt.get(call.model, 0)
            dealt[call.model] = before + (call.rows if call.divisible else 1)
            first = (rank - before) % size
            if call.divisible and call.rows > first:
                own.append((call, None if size == 1 else slice(first, None, size)))
            elif not call.divisible and first == 0:
                own.append((call, None))
            else:
                others[call.kind] = call
        for call, _ in own:
            others.pop(call.kind, None)
        return own, list(others.values())

    def _rounds(self, size: int) -> dict[tuple[object, ...], tuple[int, int]]:
        rounds = {call.kind: (0, 0) for call in self.calls}
        for rank in range(size):
            own, uncounted = self._dealt(rank, size)
            counts = Counter(call.kind for call in uncounted), Counter(call.kind for call, _ in own)
            rounds = {
                kind: (max(most[0], counts[0][kind]), max(most[1], counts[1][kind]))
                for kind, most in rounds.items()
            }
        return rounds

    def only(self, models: Iterable[str]) -> Probe:
        """Return a probe with the calls of these models; itself if there are no others."""
        observed = set(models)
        lacking = observed - {c.model for c in self.calls if not c.call.method}
        kept = [c for c in self.calls if (lacking if c.call.method else c.model in observed)]
        return self if len(kept) == len(self.calls) else Probe(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and tensors, which a checkpoint can load safely."""
        return {
            "calls": [
                {
                    "model": c.model,
                    "args": list(c.call.args),
                    "kwargs": c.call.kwargs,
                    "method": c.call.method,
                    "divisible": c.divisible,
                    "scored": c.scored,
                }
                for c in self.calls
            ]
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Probe:
        """Inverse of :meth:`state_dict`."""
        calls = []
        for c in state["calls"]:
            call = Call(tuple(c["args"]), dict(c["kwargs"]), c.get("method", ""))
            recorded = ProbeCall.of(c["model"], call)
            recorded = recorded if c.get("divisible", True) else recorded.whole()
            calls.append(replace(recorded, scored=c.get("scored")))
        return cls(calls)

    @classmethod
    def joined(
        cls, everyone: Sequence[Sequence[ProbeCall]], size: int, tokens: int | None = None
    ) -> Probe | None:
        """Join the calls of all ranks, within ``size`` sequences and ``tokens`` tokens per model.

        Args:
            everyone: Calls by rank.
            size: Sequences.
            tokens: Tokens; None for no limit.

        Returns:
            ``None`` if no rank has a call.
        """
        everyone = _with_scored(within_over_ranks(everyone, size, tokens))
        longest = max(map(len, everyone))
        joined = [calls[i] for i in range(longest) for calls in everyone if i < len(calls)]
        return cls(joined) if joined else None


def _with_scored(everyone: Sequence[Sequence[ProbeCall]]) -> list[list[ProbeCall]]:
    """Mark the sequences of each model whose single scores are measured, the same on any number of ranks.

    Args:
        everyone: Calls by rank; their sequences are counted in turn, as :func:`within_over_ranks` does.
    """
    scored = [[0] * len(calls) for calls in everyone]
    for model in {call.model for calls in everyone for call in calls}:
        parts = [
            [
                (i, count)
                for i, call in enumerate(calls)
                if call.model == model
                for count in call.sequences.counts
            ]
            for calls in everyone
        ]
        left = SCORED_SEQUENCES
        for turn in range(max(map(len, parts))):
            for rank in (rank for rank, own in enumerate(parts) if turn < len(own)):
                index, count = parts[rank][turn]
                scored[rank][index] += min(count, left)
                left -= min(count, left)
    return [
        [replace(call, scored=count) for call, count in zip(calls, counts, strict=True)]
        for calls, counts in zip(everyone, scored, strict=True)
    ]


def probe_from(given: Any, size: int, tokens: int | None = None) -> list[Call]:
    """Return the calls of a user's ``probe``: a whole batch, or a dataloader's first batches.

    Raises:
        TypeError: If an argument cannot be kept.
    """
    loader = not isinstance(given, (Tensor, Mapping, tuple, list)) and isinstance(given, Iterable)
    calls: list[ProbeCall] = []
    for batch in given if loader else [given]:
        call = Call.from_batch(batch)
        kept = ProbeCall.of("", Call(tuple(copied(list(call.args))), copied(call.kwargs)))
        if not loader:
            return [kept.call]
        parts, complete = within(calls, kept, size, tokens)
        calls += parts
        if complete:
            break
    return [c.call for c in calls]


def kept_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Copy the arguments of one call of a function.

    Raises:
        TypeError: If an argument cannot be kept; the message names it and a remedy.
    """
    kwargs = {name: value for name, value in kwargs.items() if name != LOSS_DIVISOR}
    names = list(inspect.signature(function).parameters)
    named = [(names[i] if i < len(names) else str(i), value) for i, value in enumerate(args)]
    copies = []
    for name, value in [*named, *kwargs.items()]:
        try:
            copies.append(copied(value))
        except TypeError as error:
            raise ArgumentTypeError(
                f"Expected `{name}` to be something that a probe can keep but {error}, give `probe=`, or "
                'observe training itself with `source="batch"`'
            ) from error
    return Call(tuple(copies[: len(args)]), dict(zip(kwargs, copies[len(args) :], strict=True)))


def copied(value: Any) -> Any:
    """Copy to plain containers on the CPU.

    Raises:
        TypeError: If it contains anything but tensors, numbers, strings, None and containers of them.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            type(value)(copied(item) for item in value)
            if type(value) in (list, tuple)
            else tuple(map(copied, value))
        )
    raise ArgumentTypeError(
        f"an argument of type {type(value).__name__} cannot be kept: pass tensors, numbers, strings, None "
        "and containers of them"
    )
