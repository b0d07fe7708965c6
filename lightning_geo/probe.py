"""The probe: records calls of the observed models and replays the same ones at every sample."""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_geo.call_state import holds_state
from lightning_geo.probe_limits import within, within_over_ranks
from lightning_geo.ranks import world_size
from lightning_geo.replay import Call, replay_depth
from lightning_geo.sequences import CallSequences, documents_taken, tokens_of_documents

__all__ = ["CallRecorder", "Probe", "ProbeCall", "Share", "on_call", "probe_from", "rows_of"]


@dataclass
class ProbeCall:
    """One recorded call.

    Args:
        model: Prefix of the observed model.
        call: Its arguments, on the CPU.
        rows: Sequences in it; parts that it can be divided into where it is divisible.
        divisible: Whether it can be divided: all its tensors have the sequences on their first axis, or its
            only row holds documents, and every tensor has an entry for each token;
            never where it brings a cache.
        sequences: Counts of its parts.
    """

    model: str
    call: Call
    rows: int
    divisible: bool
    sequences: CallSequences

    @classmethod
    def of(cls, model: str, call: Call, *, packed: bool = True) -> ProbeCall:
        """Count the sequences of a call; without ``packed`` its rows, which reads no tensor."""
        sequences = CallSequences.of(call, packed=packed)
        divisible = sequences.divisible and not holds_state([*call.args, call.kwargs])
        rows = len(sequences.counts) if divisible else sequences.counts[0]
        return cls(model, call, rows, divisible, sequences)

    @property
    def kind(self) -> tuple[object, ...]:
        """Calls of a kind run through the same layers."""
        return self.model, len(self.call.args), *sorted(self.call.kwargs)

    def to(self, device: torch.device) -> ProbeCall:
        """Move its tensors."""
        return replace(self, call=self.call.to(device))

    def take(self, rows: slice) -> ProbeCall:
        """Some of its sequences; all of them where it is not divisible."""
        if not self.divisible:
            return self
        documents = self.sequences.documents
        if documents is None:
            return ProbeCall.of(self.model, self.call.map(lambda x: x[rows] if x.dim() else x))
        chosen = range(self.rows)[rows]
        call, spans = documents_taken(self.call, documents, chosen)
        tokens = tuple(self.sequences.tokens[i] for i in chosen)
        sequences = CallSequences(True, (1,) * len(tokens), tokens, spans, packed=len(tokens) > 1)
        return ProbeCall(self.model, call, len(tokens), True, sequences)

    def digests(self) -> list[bytes]:
        """One digest per sequence, padding left out where an attention mask tells it."""
        if self.sequences.documents is not None:
            parts = tokens_of_documents(self.call, self.sequences.documents)
            return [_digest(part, slice(None), None) for part in parts]
        named = {**{str(i): x for i, x in enumerate(self.call.args)}, **self.call.kwargs}
        mask = named.get("attention_mask")
        if not (self.divisible and isinstance(mask, Tensor) and mask.dim() == 2):
            mask = None
        rows = range(self.rows) if self.divisible else [slice(None)]
        return [_digest(named, row, mask) for row in rows]


def rows_of(call: Call) -> tuple[int, bool]:
    """How many sequences there are, and whether all tensors have them on their first axis."""
    sizes = [x.shape[0] for x in call.tensors() if x.dim() > 0]
    return (sizes[0] if sizes else 1), len(set(sizes)) == 1


@dataclass
class Share:
    """What one rank replays of the probe.

    Args:
        calls: Its own.
        uncounted: One of each kind of which it has none: ranks merge only what has the same layers.
    """

    calls: list[ProbeCall]
    uncounted: list[ProbeCall] = field(default_factory=list)

    def to(self, device: torch.device) -> Share:
        """Move its tensors."""
        return Share([call.to(device) for call in self.calls], [call.to(device) for call in self.uncounted])


class Probe:
    """The inputs on which samples are taken.

    Args:
        calls: In order; those of all ranks.
    """

    def __init__(self, calls: Sequence[ProbeCall]) -> None:
        self.calls = list(calls)
        digests = sorted(d for call in self.calls for d in call.digests())
        #: equal for equal inputs, in whatever order, padding or number of ranks they came
        self.fingerprint = hashlib.sha256(b"".join(digests)).hexdigest()[:16] if digests else ""

    @property
    def models(self) -> list[str]:
        """Prefixes of the observed models."""
        return list(dict.fromkeys(call.model for call in self.calls))

    def share(self, rank: int, world_size: int) -> Share:
        """What one rank replays: every ``world_size``-th sequence, and call where they cannot be divided."""
        mine: list[ProbeCall] = []
        others: list[ProbeCall] = []
        whole = itertools.count()
        for call in self.calls:
            if call.divisible and call.rows > rank:
                mine.append(call.take(slice(rank, None, world_size)))
            elif not call.divisible and next(whole) % world_size == rank:
                mine.append(call)
            else:
                others.append(call.take(slice(1)))
        missing = {call.kind: call for call in others}
        for call in mine:
            missing.pop(call.kind, None)
        return Share(mine, list(missing.values()))

    def only(self, models: Iterable[str]) -> Probe:
        """The calls of these models; itself where there are no others."""
        wanted = set(models)
        return self if wanted >= set(self.models) else Probe([c for c in self.calls if c.model in wanted])

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors only: what a checkpoint can be loaded with safely."""
        return {
            "calls": [
                {"model": c.model, "args": list(c.call.args), "kwargs": c.call.kwargs} for c in self.calls
            ]
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Probe:
        """Inverse of :meth:`state_dict`."""
        return cls(
            [ProbeCall.of(c["model"], Call(tuple(c["args"]), dict(c["kwargs"]))) for c in state["calls"]]
        )

    @classmethod
    def gather(cls, calls: Sequence[ProbeCall], size: int, tokens: int | None = None) -> Probe | None:
        """Join what all ranks recorded, within ``size`` sequences and ``tokens`` tokens per model.

        Returns:
            ``None`` if nobody has any.
        """
        everyone: list[list[ProbeCall]] = [list(calls)]
        if world_size() > 1:
            everyone = [[] for _ in range(world_size())]
            dist.all_gather_object(everyone, list(calls))
        everyone = within_over_ranks(everyone, size, tokens)
        longest = max(map(len, everyone))
        joined = [mine[i] for i in range(longest) for mine in everyone if i < len(mine)]
        return cls(joined) if joined else None


class CallRecorder:
    """Records the first calls that the trainer makes of the candidates for observed models.

    Args:
        candidates: Modules by prefix.
        size: Sequences to record of each.
        tokens: Tokens to record of each, see :func:`~lightning_geo.probe_limits.within`; None for no limit.
    """

    def __init__(self, candidates: Mapping[str, nn.Module], size: int, tokens: int | None = None) -> None:
        self._candidates = candidates
        self._limits = size, tokens
        self._complete: set[str] = set()
        self._handles: list[Any] = []
        self._calls: list[ProbeCall] = []
        #: why calls were passed over, by prefix
        self.passed_over: dict[str, str] = {}

    @property
    def calls(self) -> list[ProbeCall]:
        """What was recorded."""
        return self._calls

    def start(self) -> None:
        """Watch the candidates' calls."""
        for name, module in self._candidates.items() if not self._handles else ():
            try:
                self._handles.append(on_call(module, self._hook(name)))
            except Exception as error:  # some modules, as TorchScript's, take no hook
                self.passed_over[name] = f"its calls cannot be watched ({type(error).__name__}: {error})"

    def stop(self) -> None:
        """Leave the candidates alone; harmless when done twice."""
        for remove in self._handles:
            remove()
        self._handles = []

    def _hook(self, name: str) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
        def record(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # what another monitor replays is no call of the trainer's
            if name in self._complete or replay_depth():
                return
            try:
                # what the sanity check passes are inference tensors, of no use to a later forward
                with torch.inference_mode(False), torch.no_grad():
                    call = ProbeCall.of(name, _kept(self._candidates[name], args, kwargs))
                    before = [call for call in self._calls if call.model == name]
                    kept, complete = within(before, call, *self._limits)
                    self._calls += kept
                    if complete:
                        self._complete.add(name)
            except Exception as error:  # the model is running: it is not to see this
                self.passed_over[name] = str(error)

        return record


def on_call(
    module: nn.Module, function: Callable[[tuple[Any, ...], dict[str, Any]], None]
) -> Callable[[], None]:
    """Run ``function(args, kwargs)`` before every call of ``module``; returns what undoes it.

    A module compiled in place runs its hooks inside the compiled code, so there the compiled call
    itself is wrapped: the graph stays as it is.
    """
    if module._compiled_call_impl is None:

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return  # inside somebody's compiled code: no part of it
            if getattr(module.forward, "__name__", "forward") != "wrapped_forward":
                function(args, kwargs)  # else Lightning borrows the module's call for a whole step

        return module.register_forward_pre_hook(hook, with_kwargs=True).remove

    call = module._compiled_call_impl
    if not isinstance(call, _ToldCall):
        call = module._compiled_call_impl = _ToldCall(call)
    call.listeners.append(function)

    def undo() -> None:
        if function in call.listeners:
            call.listeners.remove(function)
        if not call.listeners and module._compiled_call_impl is call:
            module._compiled_call_impl = call.compiled

    return undo


class _ToldCall:
    """A compiled call that tells listeners of its arguments first; of several, any may go first."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self.compiled = compiled
        self.listeners: list[Callable[[tuple[Any, ...], dict[str, Any]], None]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for listener in tuple(self.listeners):
            listener(args, kwargs)
        return self.compiled(*args, **kwargs)


def probe_from(given: Any, size: int, tokens: int | None = None) -> list[Call]:
    """Calls from what a user gave as ``probe``: one batch whole, or a dataloader's first.

    Raises:
        TypeError: If nothing in it can be kept.
    """
    loader = not isinstance(given, (Tensor, Mapping, tuple, list)) and isinstance(given, Iterable)
    calls: list[ProbeCall] = []
    for batch in given if loader else [given]:
        call = Call.from_batch(batch)
        kept = ProbeCall.of("", Call(tuple(_copy(list(call.args))), _copy(call.kwargs)))
        if not loader:
            return [kept.call]
        parts, complete = within(calls, kept, size, tokens)
        calls += parts
        if complete:
            break
    return [c.call for c in calls]


def _kept(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Copy the arguments of one call.

    Raises:
        TypeError: If one cannot be kept, with its name and what to do.
    """
    names = list(inspect.signature(module.forward).parameters)
    named = [(names[i] if i < len(names) else str(i), value) for i, value in enumerate(args)]
    copies = []
    for name, value in [*named, *kwargs.items()]:
        try:
            copies.append(_copy(value))
        except TypeError as error:
            raise TypeError(
                f"{error} (`{name}`). Pass tensors, numbers, strings, None and containers of them, give "
                '`probe=`, or observe training itself with `source="batch"`'
            ) from error
    return Call(tuple(copies[: len(args)]), dict(zip(kwargs, copies[len(args) :], strict=True)))


def _copy(value: Any) -> Any:
    """Copy to plain containers on the CPU.

    Raises:
        TypeError: If there is anything but tensors, numbers, strings, None and containers of them.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            type(value)(_copy(item) for item in value)
            if type(value) in (list, tuple)
            else tuple(map(_copy, value))
        )
    raise TypeError(f"an argument of type {type(value).__name__} cannot be kept")


def _digest(named: Mapping[str, Any], row: int | slice, mask: Tensor | None) -> bytes:
    state = hashlib.sha256()
    for name, value in sorted(named.items()):
        tensors: list[Tensor] = []
        Call((value,)).map(lambda x, into=tensors: into.append(x) or x)
        for x in tensors:
            part = x[row] if x.dim() else x
            if mask is not None and isinstance(row, int) and x.shape[:2] == mask.shape:
                part = part[mask[row].bool()]
            part = part.contiguous()
            content = part.reshape(-1).view(torch.uint8) if part.numel() else part
            state.update(f"{name} {x.dtype} {tuple(part.shape)} ".encode())
            state.update(content.numpy().tobytes())
    return state.digest()
