"""Start and end of an observed model's modules, whose inputs and outputs are shown as blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_geo.observe.attention_events import AttentionEvents
from lightning_geo.observe.call import BlockCall
from lightning_geo.observe.layers.frame import (
    Frame,
    batch_first,
    fitting,
    given_to,
    in_rows,
    input_ids_in,
    token_states,
)
from lightning_geo.observe.layers.linear_run import LinearRun
from lightning_geo.observe.layers.module_stack import ModuleStack
from lightning_geo.observe.layers.numbering import looks_like_attention
from lightning_geo.observe.packed.claims import evidence_in
from lightning_geo.utils._torch import is_distributed_tensor

__all__ = ["ModuleEvents"]

_OTHER_TOKENS = "its hidden states have other tokens than the packed rows of its attention"
_SOME_TOKENS = "tensor parallelism left this rank some tokens of its hidden states (sequence parallelism)"
_SOME_HEADS = (
    "tensor parallelism left this rank some heads of what the module returns, so that metrics of its output "
    "as a whole are absent"
)
_PAST_CALL = (
    "the model ran `layer.forward(x)`, which skips hooks, so that metrics of the layer's input and output "
    "are absent. Call `layer(x)` instead"
)


class ModuleEvents:
    """Keeps the stack of running modules, and shows the observer the results of attention modules and layers.

    Args:
        stack: The modules that are running.
        attention: The attention calls inside of them.
    """

    def __init__(self, stack: ModuleStack, attention: AttentionEvents) -> None:
        self.stack = stack
        self._attention = attention
        #: whether any module takes token ids
        self.takes_ids = False
        #: modules that look like attention and ran without showing any: path -> class name
        self.unobserved: dict[str, str] = {}

    def start(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        buffers: Iterable[Tensor],
    ) -> None:
        """Handle the call of a module.

        Args:
            name: Its path.
            module: The module.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            buffers: Buffers of the observed model, which are constants, not data.
        """
        frame = Frame(name, module, given=given_to(module, args, kwargs))
        if self.stack.frames:
            self.imply(name)
        else:
            self._attention.evidence.begin(frame, buffers)
        frame.input_ids = input_ids_in(args, kwargs)
        frame.evidence = evidence_in(module, args, kwargs)
        if self.stack.takes_input(name):
            frame.input = token_states((*args, *kwargs.values()))
        self.takes_ids |= frame.input_ids is not None
        search = self._attention.search
        if name in self.stack.tree.linear and search.observer is not None and args:
            frame.x = args[0]
            search.linear_starts(module, args[0])
        self.stack.push(frame)

    def imply(self, name: str) -> None:
        """Start the modules around ``name`` that run although their ``__call__`` was skipped."""
        while self.stack.ends_before(name):
            self.end()
        for frame in self.stack.implied_by(name):
            self.stack.push(frame)

    def end(self, result: Any = None) -> None:
        """Handle the return of the innermost module; an implied module has no result."""
        frames, items = self.stack.frames, self.stack.tree.items
        frame = frames[-1]
        # elsewhere there is nothing to settle, and entering our own work costs as much as a small operation
        if frame.held or frame.name in items or len(frames) == 1:
            with self._attention.work.running():
                self._attention.settle(frame)
        if frame.name in items:
            self._attention.search.settle()
        frames.pop()
        if frame.x is not None and isinstance(result, Tensor) and frames:
            if self.stack.records_linears():
                name = frame.name.rpartition(".")[2]
                frames[-1].linears.append(LinearRun(name, frame.module, frame.x, result))
            return
        if frame.implied:
            if frame.keys and frame.name in items:
                self._attention.note(_PAST_CALL, frame.name)
        elif frame.keys:
            with self._attention.work.running():
                values = tuple(result.values()) if isinstance(result, Mapping) else result
                self._report(frame, token_states(values if isinstance(values, (tuple, list)) else (values,)))
        elif looks_like_attention(frame.module) and not frame.gathered:
            self.unobserved[frame.name] = type(frame.module).__name__

    def _is_part(self, frame: Frame, output: Tensor) -> bool:
        """Whether tensor parallelism left this process some tokens or heads of an output; notes it if so."""
        if frame.slice_shape is None:
            return False
        tokens, width = frame.slice_shape
        if is_distributed_tensor(output) or (frame.documents is None and output.shape[1] != tokens):
            self._attention.note(_SOME_TOKENS, frame.name)
            return True
        if frame.emitted is not None and output.shape[-1] == width:
            self._attention.note(_SOME_HEADS, frame.emitted.module)
            frame.emitted = None
        return frame.emitted is None and not self.stack.is_block(frame)

    def _report(self, frame: Frame, output: Tensor | None) -> None:
        """Show the input and output of a module with attention inside, by sequence or by document."""
        is_block = self.stack.is_block(frame)
        if frame.emitted is None and not is_block:
            return
        before, after = (in_rows(batch_first(x, frame), frame.documents) for x in (frame.input, output))
        if after is None or before is None or before.shape != after.shape:
            before = None
        mask = None if after is None else fitting(frame.query_mask, after)
        if after is not None and self._is_part(frame, after):
            return
        parts = [(before, after, mask)]
        if after is not None and frame.documents is not None:
            if not frame.documents.holds(after):
                self._attention.note(_OTHER_TOKENS, frame.name)
                return
            inputs = frame.documents.split_hidden(after if before is None else before)
            outputs = frame.documents.split_hidden(after, mask)
            pairs = zip(inputs, outputs, strict=True)
            parts = [(None if before is None else x, y, real) for (x, _), (y, real) in pairs]
        for before, after, mask in parts:
            if frame.emitted is not None and after is not None:
                self._attention.observer.attention_module(frame.emitted, after, mask)
            if is_block:
                self._attention.observer.block(BlockCall(frame.name, tuple(frame.keys), before, after, mask))
