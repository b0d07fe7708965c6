"""Attention calls of a running model: recognised, completed with evidence, shown to an observer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_geo.observe.attention.by_hand import SoftmaxTracer
from lightning_geo.observe.attention.by_hand_calls import written_calls
from lightning_geo.observe.attention.gathering import between_channels, gatherer, resolve
from lightning_geo.observe.attention.sdpa import multi_head_call, multi_head_inputs, sdpa_call, sdpa_inputs
from lightning_geo.observe.attention.traced_tensors import WrittenAttention
from lightning_geo.observe.attention.varlen import VARLEN, varlen_call, varlen_inputs
from lightning_geo.observe.call import AttentionCall, CallKey
from lightning_geo.observe.coverage import Coverage, LeftOutError
from lightning_geo.observe.evidence.axes import Axes
from lightning_geo.observe.evidence.call_evidence import CallEvidence
from lightning_geo.observe.evidence.held_call import Held
from lightning_geo.observe.heads.head_slices import HeadSlices
from lightning_geo.observe.heads.intervention import Intervention
from lightning_geo.observe.heads.projection_search import ProjectionSearch
from lightning_geo.observe.layers.frame import Frame, tokens_in
from lightning_geo.observe.layers.module_stack import ModuleStack
from lightning_geo.observe.observer import Observer
from lightning_geo.observe.own_work import OwnWork
from lightning_geo.observe.packed.documents import PackedCallError
from lightning_geo.utils._torch import in_context_parallel, is_distributed_tensor, split_groups

__all__ = ["Asked", "AttentionEvents"]

#: Whether a call is asked for, or any in the module of a path.
Asked = Callable[[CallKey | str], bool]

_CHANNELS = "it attends between channels, not between tokens, where these metrics are undefined"
_ELSEWHERE = (
    "its queries attend to keys on other ranks (context parallelism, DTensors), which are not seen here"
)
_SCRIPTED = (
    "its module is TorchScript, which hides the attention inside. Observe the model before `torch.jit.script`"
)
_AGAIN = (
    "it attends twice with the same queries and keys but other values: metrics of values and outputs use the "
    "first time only"
)
_NO_PLACE = (
    "the positions of its queries among its keys are unknown, so that metrics of positions (`self_mass`, "
    "`attention_distance`, …) are absent"
)


class AttentionEvents:
    """Turns the functions that a model calls into attention calls, and passes these to an observer.

    Args:
        stack: The modules that are running.
        work: Contexts for the computations made here.
        special_token_ids: Input ids that count as special tokens.
        imply: Called with the path of a module that runs although its ``__call__`` was skipped.
        name_of: Maps a module's path to its name in messages.
    """

    def __init__(
        self,
        stack: ModuleStack,
        work: OwnWork,
        special_token_ids: Iterable[int],
        imply: Callable[[str], None],
        name_of: Callable[[str], str],
    ) -> None:
        self.stack = stack
        self.work = work
        #: how many of the calls that are asked for were seen, and how many measured
        self.coverage = Coverage()
        self._asked: Asked = lambda call: True
        self.evidence = CallEvidence(tuple(special_token_ids))
        self.tracer = SoftmaxTracer(self._written, lambda: self.stack.frames[-1].name)
        self.search = ProjectionSearch(self.work.running)
        self.intervention = Intervention()
        #: which heads of the layers this process has
        self.slices = HeadSlices()
        self.observer: Observer
        self._imply = imply
        self._name_of = name_of

    def begin_sample(self, asked: Asked) -> None:
        """Reset counts, which are of calls that are asked for."""
        self._asked = asked
        self.slices.begin(split_groups(self.stack.tree.modules[""]))
        self.coverage = Coverage()
        self.settle_masks()

    def let_go(self) -> None:
        """Forget the observer: a failed sample would hold its memory until the next one."""
        self.search.observer = None
        del self.observer

    def settle_masks(self) -> list[str]:
        """Read what the device found out about masks; return modules that were measured with another one."""
        modules = [name for name in self.evidence.structures.settle() if self._asked(name)]
        self.coverage.withdraw(modules)
        return modules

    def clear(self) -> None:
        """Drop every reference to the model's activations."""
        self.tracer.clear()
        self.evidence.clear()
        self.search.start_over()
        self.intervention.clear()

    def routed(self, module: nn.Module | None, translate: Callable[[], AttentionCall], result: Any) -> None:
        """Take a call of transformers' attention function for ``module``, or of flex_attention (``None``)."""
        if not self.stack.frames:
            return  # a call outside the observed model
        with self.work.running():
            call = translate()
            assert call.query is not None
            assert call.key is not None
            query, key = self.evidence.attended(call.query, call.key, result)
            name = self.stack.tree.names.get(id(module), self.stack.frames[-1].name)
            self._see(Held(call, name, query, key, result))

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow a torch function, and take the attention that it computes, if any."""
        if func is F.scaled_dot_product_attention:
            with self.work.running():
                call = sdpa_call(self._axes, result, *args, **kwargs)
                query, key = self.evidence.attended(*sdpa_inputs(args, kwargs), result)
                self._see(Held(call, self.stack.frames[-1].name, query, key, result))
        elif func is F.multi_head_attention_forward:
            with self.work.running():
                call, behind = multi_head_call(args, kwargs)
                query, key = self.evidence.attended(*multi_head_inputs(args, kwargs), result)
                name, given = self.stack.frames[-1].name, (args, kwargs)
                self._see(Held(call, name, query, key, result, given, behind=behind))
        elif func in VARLEN:
            with self.work.running():
                call = varlen_call(func, args, kwargs, result)
                query, key = self.evidence.attended(*varlen_inputs(func, args, kwargs), result)
                self._see(Held(call, self.stack.frames[-1].name, query, key, result))
        else:
            for x in args:  # using a layer's parameters from outside runs the layer without calling it
                item = self.stack.uses(x)
                if item is not None:
                    with self.work.running():
                        self._imply(f"{item}.")
            self.evidence.follow(func, args, kwargs, result)
            self.tracer.see(func, args, kwargs, result)

    def _axes(self, x: Tensor, key: Tensor | None) -> Axes:
        return self.evidence.axes(x, key, self.stack)

    def _written(self, attention: WrittenAttention, place: str | None = None) -> None:
        """Translate an attention recognised in products and softmaxes."""
        with self.work.running():
            calls = written_calls(attention, self._axes, self.evidence.masks)
            for softmax, call in zip(attention.softmaxes, calls, strict=True):
                query, key = self.evidence.attended(*softmax.given, attention.product)
                name = self.stack.frames[-1].name if place is None else place
                self._see(Held(call, name, query, key, attention.product))

    def _see(self, held: Held) -> None:
        """Show a computed attention, or hold it until the other parts of the same attention are computed."""
        call, frames = held.call, self.stack.frames
        if in_context_parallel() or (call.query is not None and is_distributed_tensor(call.query)):
            self.leave_out(_ELSEWHERE, held.module)
            return
        self.evidence.place(held, self.stack)
        if between_channels(call, tokens_in(frames)):
            self.leave_out(_CHANNELS, held.module)
            return
        if self.stack.attended_with(call.query, call.key):
            self.note(_AGAIN, held.module)
            return
        owner = gatherer(held, self.stack.inside(), frames, self.stack.tree.modules)
        if owner is None:
            self._show(held)
            return
        if owner.held and not owner.held[-1].beside(held):
            complete, owner.held = owner.held, []
            self._show_all(owner, complete)
        owner.held.append(held)
        for frame in frames[frames.index(owner) + 1 :]:
            frame.gathered = True

    def _show_all(self, frame: Frame, held: list[Held]) -> None:
        """Show held calls, parts of one attention joined into one."""
        resolved = resolve(frame, held, tokens_in([frame]))
        for one in resolved.calls:
            self._show(one, more=one is not resolved.calls[0] and resolved.shares)
        if resolved.reason:
            self.leave_out(resolved.reason, frame.name)

    def _show(self, held: Held, *, more: bool = False) -> None:
        """Show the observer one attention call.

        Args:
            held: The call and the evidence about it.
            more: Whether it holds further sequences of the call shown before.
        """
        call = held.call
        try:
            self.evidence.set_tokens(held, self.stack)
        except PackedCallError as error:
            self.leave_out(str(error), held.module)
            return
        if getattr(self.observer, "reads_padding", False):
            self.evidence.set_padding(held, self.stack)
        if call.offset is None and not call.cross:
            self.note(_NO_PLACE, held.module)
        try:
            call.slice = self.slices.slice_of(call, held.module, self.stack.tree.modules)
        except LeftOutError as error:
            self.leave_out(str(error), held.module)
            return
        key = self.stack.key(held.module, cross=call.cross, more=more)
        self.stack.note(key, call)
        asked = self._asked(key)
        self.coverage.seen += asked
        answer = self.observer.attention(key, call)
        self.coverage.measured += asked
        self.intervention.request(held, answer, self._name_of(key.module))
        if self.search.observer is not None:
            runs = [run for frame in self.stack.inside() for run in frame.linears]
            self.search.attention(key, call, runs)

    def settle(self, frame: Frame) -> None:
        """Show calls held until a module ends: parts of one attention, and softmaxes without a product."""
        held, frame.held = frame.held, []
        if held:
            self._show_all(frame, held)
        is_layer = frame.name in self.stack.tree.items and not isinstance(
            frame.module, (nn.Softmax, nn.Sequential)
        )
        if is_layer or len(self.stack.frames) == 1:
            for softmax in self.tracer.unmultiplied(frame.name):
                if softmax.place not in {key.module for key in frame.keys}:
                    self._written(WrittenAttention((softmax,)), softmax.place)
                softmax.let_go()

    def leave_out(self, reason: str, name: str | None = None) -> None:
        """Count an attention call that cannot be measured."""
        if name is None:
            name = self.stack.frames[-1].name if self.stack.frames else ""
        self.coverage.seen += self._asked(name)
        self.note(reason, name)

    def note(self, reason: str, name: str) -> None:
        """Note that an attention call lacks some of its metrics, or a module a part of its calls."""
        if self._asked(name):
            self.coverage.leave_out(name, reason)

    def leave_out_scripted(self, root: str) -> None:
        """Count the attention of TorchScript modules inside one that starts, whether it runs or not.

        TorchScript runs outside Python, so that no hook can tell which of them run.
        """
        for name in self.stack.tree.scripted:
            if name.startswith(f"{root}." if root else ""):
                self.leave_out(_SCRIPTED, name)
