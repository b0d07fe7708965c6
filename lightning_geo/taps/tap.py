"""The tap: observes one model's attention calls while it is open, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_geo.replay import device_of, replay_depth
from lightning_geo.scripted import is_scripted, scripted_attention
from lightning_geo.taps.by_hand import SoftmaxTracer
from lightning_geo.taps.call import AttentionCall, BlockCall, CallKey
from lightning_geo.taps.coverage import Coverage, LeftOutError
from lightning_geo.taps.frames import (
    OTHER_SEQUENCE,
    Frame,
    batch_first,
    fitting,
    heads_named_by,
    hidden_states,
    input_ids_in,
)
from lightning_geo.taps.observer import Observer, ProjectionObserver
from lightning_geo.taps.projections import Run, is_linear
from lightning_geo.taps.scaling import check_scalable, scale_multi_head, scale_result
from lightning_geo.taps.sdpa import multi_head_call, sdpa_call
from lightning_geo.taps.search import ProjectionSearch
from lightning_geo.taps.slopes import SlopeHook
from lightning_geo.taps.switches import SWITCHES
from lightning_geo.taps.training import begins_training
from lightning_geo.taps.tree import clean_name, elements_of

__all__ = ["SCRIPTED", "Observer", "Tap"]

#: Why a scripted module's attention gives no numbers.
SCRIPTED = (
    "its module is TorchScript, which shows nothing of its inside; observe it before `torch.jit.script`"
)


class Tap:
    """Observe the attention of ``model`` while the context is open.

    Nothing of the model changes: forward hooks that return nothing, and while it runs a torch
    function mode and a lookup of transformers, all removed whatever happened. A failure while
    observing is kept in ``failures``, and the model's forward goes on. Only an observer that asks
    for it changes what the model computes: see :meth:`Observer.attention`.

    Args:
        model: The observed model.
        special_token_ids: Input ids that count as special tokens.
    """

    def __init__(self, model: nn.Module, special_token_ids: Iterable[int] = ()) -> None:
        self._model = model
        self.failures: list[Exception] = []
        #: what was seen and what of it was measured
        self.coverage = Coverage()
        #: seconds that observing took
        self.seconds = 0.0
        #: whether the model itself was called, rather than modules in it
        self.called = False
        #: whether any module takes token ids
        self.takes_ids = False
        #: paths of TorchScript modules that compute attention
        self.scripted: list[str] = []
        #: modules that look like attention and ran without showing any: path -> class name
        self.unobserved: dict[str, str] = {}
        self._observer: Observer
        self._search = ProjectionSearch(self._observing)
        self._special_ids = tuple(special_token_ids)
        devices = {p.device.type for p in model.parameters()} | {"cpu", device_of(model).type}
        self._devices = sorted(devices - {"meta"})
        self._frames: list[Frame] = []
        self._repeats: dict[str, int] = {}
        self._query_masks: dict[tuple[int, int], Tensor | None] = {}
        self.busy = False
        #: calls that were no part of training, and counted for nothing
        self.passed_over = 0
        self._training = False
        #: the module whose call does not count, once for each of its calls that are running
        self._passing: list[nn.Module] = []
        #: the depth of replays that is observed: one's own, not another monitor's in between
        self._depth = 0
        #: the call whose result is to be scaled, or listened at, and by what
        self._answer: tuple[AttentionCall, Tensor | SlopeHook] | None = None
        self._tracer = SoftmaxTracer(self._see)
        self._learn_modules()

    def _learn_modules(self) -> None:
        """Look at what the model is made of; again once modules were replaced, as to prune heads does."""
        self._known = list(self._model.modules())
        self._search.forget()
        self.modules = {clean_name(name): module for name, module in self._model.named_modules()}
        self.scripted = scripted_attention(self.modules)
        self._names = {id(module): name for name, module in self.modules.items()}
        self._linear = {name for name, module in self.modules.items() if is_linear(module)}
        elements = {name: elements_of(name, self.modules) for name in self.modules}
        self._listed = {name for name, found in elements.items() if found}
        self._items = {found[-1].name for found in elements.values() if found}
        #: modules that own a list of layers: when one starts, its layers are counted anew
        self._owners = {found[0].parent.rpartition(".")[0] for found in elements.values() if found} | {""}

    @property
    def unprojected(self) -> dict[str, list[str]]:
        """Attention modules and the roles whose projections could not be found."""
        return self._search.missing

    @contextlib.contextmanager
    def open(self, observer: Observer, *, training: bool = False) -> Iterator[Tap]:
        """Show ``observer`` what happens until the context ends.

        Args:
            observer: What is shown.
            training: Whether calls count only where they are part of training.
        """
        self._observer, self._depth, self._training = observer, replay_depth(), training
        wanted = getattr(observer, "reads_projections", False)
        self._search.observer = cast(ProjectionObserver, observer) if wanted else None
        if list(map(id, self._model.modules())) != list(map(id, self._known)):
            self._learn_modules()
        leave = self._harmless(self._leave)
        handles = []
        try:
            for name, module in self.modules.items():
                if is_scripted(module):
                    continue  # it takes no hooks
                enter = self._harmless(self._enter(name))
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(module.register_forward_hook(leave, always_call=True))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._start_over()

    def _start_over(self) -> None:
        """Drop every reference to the model's activations."""
        SWITCHES.disconnect(self)
        self._frames.clear()
        self._passing.clear()
        self._query_masks.clear()
        self._tracer.clear()
        self._search.start_over()
        self._answer = None

    # -- modules start and end

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.busy or self._depth != replay_depth() or self._passes_over(module):
                return
            if not name:
                self._start_over()
                self.called = True
            if not self._frames:
                SWITCHES.connect(self)
                self._leave_out_scripted(name)
            if name in self._owners:
                prefix = f"{name}." if name else ""
                self._repeats = {k: n for k, n in self._repeats.items() if not k.startswith(prefix)}
            frame = Frame(name, module)
            frame.cross = any(kwargs.get(key) is not None for key in OTHER_SEQUENCE)
            with torch._C.DisableTorchFunction():  # looking at tensors is no event for the mode
                frame.input_ids = input_ids_in(args, kwargs)
                if name in self._items or name not in self._listed:
                    frame.input = hidden_states((*args, *kwargs.values()))
            self.takes_ids |= frame.input_ids is not None
            if name in self._linear and self._search.observer is not None and args:
                frame.x = args[0]
                self._search.linear_starts(module, args[0])
            self._frames.append(frame)

        return hook

    def _passes_over(self, module: nn.Module) -> bool:
        """Whether a module starts in a call that does not count, or borrowed its call for a whole step."""
        if self._passing:
            if module is self._passing[0]:
                self._passing.append(module)
            return True
        if module is self._model and getattr(module.forward, "__name__", "") == "wrapped_forward":
            return True  # of Lightning, for a strategy that wraps the module: what it calls inside counts
        if self._frames or not self._training or begins_training():
            return False
        self._passing.append(module)
        self.passed_over += 1
        return True

    def _leave(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if self._passing and not self.busy and self._depth == replay_depth():
            if module is self._passing[0]:
                self._passing.pop()
            return
        if self.busy or self._depth != replay_depth() or all(f.module is not module for f in self._frames):
            return
        while self._frames[-1].module is not module:
            self._frames.pop()
        frame = self._frames[-1]
        if frame.traced:
            self._tracer.flush()
        if frame.name in self._items:
            self._tracer.clear()
            self._search.settle()
        self._frames.pop()
        if frame.x is not None and isinstance(result, Tensor) and self._frames:
            # outside of layers there are larger ones, the last being the vocabulary's
            if not self._items or any(outer.name in self._items for outer in self._frames):
                self._frames[-1].linears.append(Run(frame.name.rpartition(".")[2], module, frame.x, result))
            return
        if not self._frames:
            SWITCHES.disconnect(self)
        if frame.keys:
            with self._observing():
                values = tuple(result.values()) if isinstance(result, Mapping) else result
                self._report(frame, hidden_states(values if isinstance(values, (tuple, list)) else (values,)))
        elif re.search(r"att(entio)?n$", type(module).__name__, re.IGNORECASE):
            self.unobserved[frame.name] = type(module).__name__

    def _report(self, frame: Frame, output: Tensor | None) -> None:
        before, after = (batch_first(x, frame) for x in (frame.input, output))
        if frame.issued is not None and after is not None:
            self._observer.attention_module(frame.issued, after, fitting(frame.query_mask, after))
        if frame.name in self._items or (frame.issued is not None and frame.name not in self._listed):
            if after is None or before is None or before.shape != after.shape:
                before = None
            mask = None if after is None else fitting(frame.query_mask, after)
            self._observer.block(BlockCall(frame.name, tuple(frame.keys), before, after, mask))

    # -- attention happens

    def routed(self, module: nn.Module | None, translate: Callable[[], AttentionCall], result: Any) -> Any:
        """Transformers ran an attention function for ``module``, or the running one called flex_attention."""
        self._harmless(self._routed)(module, translate)
        return self._answered(result)

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """A torch function returned."""
        self._harmless(self._function)(func, args, kwargs, result)
        return self._answered(result, (args, kwargs) if func is F.multi_head_attention_forward else None)

    def _answered(self, result: Any, multi_head: tuple[tuple[Any, ...], dict[str, Any]] | None = None) -> Any:
        """What the model gets: the result itself, unless the observer asked for another."""
        if self._answer is None:
            return result
        (call, answer), self._answer = self._answer, None
        busy, self.busy = self.busy, True
        try:
            with torch._C.DisableTorchFunction():
                if isinstance(answer, SlopeHook):
                    answer.attach(result, call, multi_head)
                    return result
                if multi_head is not None:
                    return scale_multi_head(result, call, answer, *multi_head)
                return scale_result(result, call, answer)
        except Exception as error:
            self.failures.append(error)
            return result
        finally:
            self.busy = busy

    def _routed(self, module: nn.Module | None, translate: Callable[[], AttentionCall]) -> None:
        name = self._names.get(id(module))
        with self._observing():
            try:
                call = translate()
            except LeftOutError as error:
                self._leave_out(name, str(error))
                return
            self._see(call, name)

    def _leave_out_scripted(self, root: str) -> None:
        """The attention of TorchScript modules inside one that starts: nothing tells whether it runs."""
        for name in self.scripted:
            if name.startswith(f"{root}." if root else ""):
                self.coverage.seen += 1
                self.coverage.leave_out(name, SCRIPTED)

    def _leave_out(self, name: str | None, reason: str) -> None:
        """Count an attention call of a module, by default the running one, that gives no numbers."""
        if self._frames:
            self.coverage.seen += 1
            self.coverage.leave_out(self._frames[-1].name if name is None else name, reason)

    def _function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self.busy:
            return
        if func is F.scaled_dot_product_attention:
            with self._observing():
                self._see(sdpa_call(result, *args, **kwargs))
        elif func is F.multi_head_attention_forward:
            with self._observing():
                self._see(multi_head_call(args, kwargs))
        elif self._tracer.see(func, args, kwargs, result, heads_named_by(self._frames[-1].module)):
            # where softmax is a module of its own, the attention is its parent's
            inside = isinstance(self._frames[-1].module, nn.Softmax) and len(self._frames) > 1
            self._frames[-2 if inside else -1].traced = True

    def _see(self, call: AttentionCall, name: str | None = None) -> None:
        if not self._frames:
            return  # not of the observed model
        with self._observing():
            frame = self._frames[-1]
            name = frame.name if name is None else name
            call.cross = call.cross or frame.cross
            repeat = self._repeats[name] = self._repeats.get(name, -1) + 1
            key = CallKey(name, repeat, call.cross)
            batch, queries, keys = call.lengths
            if call.cross:  # its own mask tells which keys are padding, not which queries
                call.query_mask = self._query_masks.get((batch, queries))
            else:
                call.query_mask = self._query_masks[batch, queries] = call.valid_queries()
                call.special = self._special(batch, keys)
            frame.issued = key
            frame.sequence_first = getattr(frame.module, "batch_first", True) is False
            for outer in self._frames:
                outer.keys.append(key)
                if not call.cross or outer.query_mask is None:
                    outer.query_mask = call.query_mask
                outer.sequence_first = frame.sequence_first
            answer = self._observer.attention(key, call)
            if isinstance(answer, Tensor):
                check_scalable(key, call, answer)
            elif answer is not None and call.output is None:
                answer.absence = "its heads' outputs cannot be told from what the model computes"
                answer = None
            if answer is not None:
                self._answer = call, answer
            if self._search.observer is not None:
                self._search.attention(key, call, [run for f in self._inside() for run in f.linears])

    def _inside(self) -> list[Frame]:
        """The modules that are running within the innermost list item, that included."""
        for index in range(len(self._frames) - 1, -1, -1):
            if self._frames[index].name in self._items:
                return self._frames[index:]
        return self._frames

    def _special(self, batch: int, keys: int) -> Tensor | None:
        if not self._special_ids:
            return None
        for frame in reversed(self._frames):
            if frame.input_ids is not None and frame.input_ids.shape == (batch, keys):
                ids = torch.tensor(self._special_ids, device=frame.input_ids.device)
                return torch.isin(frame.input_ids, ids)
        return None

    # -- contexts

    def _harmless(self, function: Callable[..., None]) -> Callable[..., None]:
        """Keep what goes wrong in ``function`` from the model that is running."""

        def guarded(*args: Any) -> None:
            try:
                function(*args)
            except Exception as error:
                self.failures.append(error)

        return guarded

    @contextlib.contextmanager
    def _observing(self) -> Iterator[None]:
        """Run our own work: without gradient, in full precision, and seen by nobody."""
        busy, self.busy, started = self.busy, True, time.perf_counter()
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(torch._C.DisableTorchFunction())
                for device in self._devices:
                    stack.enter_context(torch.autocast(device, enabled=False))
                yield
        finally:
            self.busy = busy
            self.seconds += 0.0 if busy else time.perf_counter() - started
