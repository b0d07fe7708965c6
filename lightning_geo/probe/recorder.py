"""Records the trainer's calls on data: of the models, of the LightningModule, or of its steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lightning_geo.observe.module_selection import ITSELF
from lightning_geo.observe.replay.call_hooks import on_call
from lightning_geo.observe.replay.dependence import Dependence, depends_on_graph
from lightning_geo.observe.replay.undisturbed_run import replay_depth
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.limits import within
from lightning_geo.probe.probe import kept_call
from lightning_geo.utils._torch import in_context_parallel
from lightning_geo.utils.cuda_graphs import CaptureError, is_capturing
from lightning_geo.utils.errors import GeometryError

__all__ = ["CallRecorder", "ContextParallelError"]


class ContextParallelError(GeometryError, RuntimeError):
    """A call has a part of its sequences."""

    def __init__(self) -> None:
        super().__init__("`context_parallel` split its sequences over ranks, which a replay does not")


#: A candidate's name and "", or a method of the LightningModule.
_Key = tuple[str, str]


class CallRecorder:
    """Records the first calls that the trainer makes of the candidates for observed models.

    Args:
        candidates: Modules by prefix.
        size: Sequences to record of each.
        tokens: Tokens to record of each, see :func:`~lightning_geo.probe.limits.within`; None for no limit.
        root: The LightningModule; None to ignore its calls.
        dependence: Decides which calls are on data; None if all without a graph are.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module],
        size: int,
        tokens: int | None = None,
        root: nn.Module | None = None,
        dependence: Dependence | None = None,
    ) -> None:
        self._candidates = candidates
        self._limits = size, tokens
        self._root = root
        self._dependence = dependence
        self._complete: set[_Key] = set()
        self._handles: list[Any] = []
        #: whole calls, and their parts within the limits
        self._whole: dict[_Key, list[ProbeCall]] = {}
        self._kept: dict[_Key, list[ProbeCall]] = {}
        self._dependent: set[_Key] = set()
        #: whether calls had parts of sequences: in a replay of the step, ranks would wait for each other's
        self._split = False
        #: prefix -> why the model's calls were skipped
        self.passed_over: dict[str, str] = {}
        #: why the LightningModule's own calls were skipped
        self.passed_over_outside = ""

    @property
    def calls(self) -> list[ProbeCall]:
        """The recorded calls of the candidates."""
        return [call for (_, method), calls in self._kept.items() if not method for call in calls]

    @property
    def empty(self) -> bool:
        """Whether no call was seen, kept or not."""
        seen = self._kept or self._complete or self._dependent  # a rank without a share keeps none
        return not (seen or self.passed_over or self.passed_over_outside)

    def start(self) -> None:
        """Watch the candidates' calls."""
        if self._handles:
            return
        for name, module in self._candidates.items():
            try:
                self._handles.append(on_call(module, self._hook(name)))
            except Exception as error:  # TorchScript modules, for instance, take no hooks
                self.passed_over[name] = f"its calls cannot be watched ({type(error).__name__}: {error})"
        if self._root is not None and all(m is not self._root for m in self._candidates.values()):
            self._handles.append(on_call(self._root, self._hook(ITSELF, "forward")))
        if self._dependence is not None:
            self._handles += self._dependence.watch()

    def step_begins(self, method: str, batch: Any, batch_idx: int) -> None:
        """Watch the calls of a step of the LightningModule that is about to begin.

        Args:
            method: The step's name.
            batch: The step's batch.
            batch_idx: The batch's number.
        """
        if self._dependence is not None:
            self._dependence.step_begins(batch)
        if self._root is not None:
            takes = len(inspect.signature(getattr(self._root, method)).parameters)
            self._record((ITSELF, method), self._root, (batch, batch_idx)[:takes], {})
        self.start()

    def stop(self) -> None:
        """Stop watching the candidates; a second call does nothing."""
        for remove in self._handles:
            remove()
        self._handles = []

    def _hook(self, name: str, method: str = "") -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
        def record(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A replay of another monitor is not a call of the trainer.
            if replay_depth():
                return
            module = self._candidates[name] if not method else self._root
            if module is not None:
                self._record((name, method), module, args, kwargs)

        return record

    def _record(self, key: _Key, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name, method = key
        try:
            if is_capturing():  # copies would become part of the graph
                raise CaptureError
            if in_context_parallel():
                self._split = True
                raise ContextParallelError
            # The sanity check passes inference tensors, which a later forward pass could not use: copy them
            # as normal tensors.
            with torch.inference_mode(False), torch.no_grad():
                called = method in ("", "forward")
                if called and self._dependence is not None:
                    known = name if not method else None
                    if self._dependence.note(known, args, kwargs):
                        self._dependent.add(key)
                elif called and depends_on_graph(args, kwargs):
                    self._dependent.add(key)
                    self.passed_over[name] = "what it is given depends on parameters"
                if key in self._complete or key in self._dependent:
                    return
                call = kept_call(module.forward if called else getattr(module, method), args, kwargs)
                call.method = method
                recorded = ProbeCall.of(name, call)
                kept, complete = within(self._kept.get(key, []), recorded, *self._limits)
                if kept:
                    self._whole.setdefault(key, []).append(recorded)
                    self._kept.setdefault(key, []).extend(kept)
                if complete:
                    self._complete.add(key)
        except Exception as error:  # an error in a hook would abort the user's step
            if method:
                self.passed_over_outside = str(error)
            else:
                self.passed_over[name] = str(error)

    def settled(self, divides: Callable[[ProbeCall], bool]) -> list[ProbeCall]:
        """Return the calls for a probe: those on data, cut where they can be divided.

        Args:
            divides: Tests on the model whether a call's first axis holds sequences.
        """
        if self._split:
            return []
        keys: list[_Key] = [(n, m) for n, m in self._kept if not m and (n, m) not in self._dependent]
        lacking = any(not method for _, method in self._dependent)
        lacking = lacking or any((name, "") not in self._kept for name in self.passed_over)
        if (lacking or not keys) and (ITSELF, "") not in keys:
            outside = [key for key in self._kept if key[1] and key not in self._dependent]
            keys += sorted(outside, key=lambda key: key[1] != "forward")[:1]
        settled = []
        for key in keys:
            kept: list[ProbeCall] = []
            for whole in self._whole[key]:
                known = whole.sequences.documents is not None or whole.sequences.packed
                call = whole if known or not whole.divisible or divides(whole) else whole.whole()
                kept += within(kept, call, *self._limits)[0]
            settled += kept
        return settled
