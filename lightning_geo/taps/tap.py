"""The tap: observes one model's attention calls while it is open, and leaves nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_geo.clock import Stopwatch
from lightning_geo.complaints import let_go
from lightning_geo.replay import device_of, replay_depth
from lightning_geo.scripted import is_scripted
from lightning_geo.taps.axes import Axes, UnknownAxesError
from lightning_geo.taps.by_hand import SoftmaxTracer, WrittenAttention
from lightning_geo.taps.call import AttentionCall, BlockCall
from lightning_geo.taps.call_evidence import CallEvidence
from lightning_geo.taps.coverage import Coverage, LeftOutError
from lightning_geo.taps.documents import PackedCallError
from lightning_geo.taps.evidence import evidence_in
from lightning_geo.taps.frames import (
    Frame,
    batch_first,
    fitting,
    given_to,
    in_rows,
    input_ids_in,
    token_states,
    tokens_in,
)
from lightning_geo.taps.gathering import Held, between_channels, gatherer, resolve
from lightning_geo.taps.module_stack import ModuleStack, ModuleTree
from lightning_geo.taps.observer import Observer, ProjectionObserver
from lightning_geo.taps.projections import Run
from lightning_geo.taps.scaling import check_scalable, scale_multi_head, scale_result
from lightning_geo.taps.sdpa import multi_head_call, multi_head_inputs, sdpa_call, sdpa_inputs
from lightning_geo.taps.search import ProjectionSearch
from lightning_geo.taps.slopes import SlopeHook
from lightning_geo.taps.switches import SWITCHES
from lightning_geo.taps.training import begins_training
from lightning_geo.taps.tree import looks_like_attention, name_of
from lightning_geo.taps.varlen import VARLEN, varlen_call, varlen_inputs
from lightning_geo.taps.written import written_calls
from lightning_geo.told import Fleeting

__all__ = ["SCRIPTED", "Observer", "Tap"]

#: Why a scripted module's attention gives no numbers.
SCRIPTED = (
    "its module is TorchScript, which shows nothing of its inside; observe it before `torch.jit.script`"
)

_CHANNELS = "it is attention between channels, not between tokens, for which these metrics are not defined"
_AGAIN = (
    "it attends twice with the same queries and keys, to other values: its values and outputs are those of "
    "the first time alone"
)
_NO_PLACE = (
    "where its queries stand among its keys cannot be told, so that metrics of positions (`self_mass`, "
    "`distance`, …) are absent"
)
_OTHER_TOKENS = "its hidden states are not the tokens of the packed rows that its attention saw"
_PAST_CALL = (
    "the layer was run as `layer.forward(x)`, past its hooks, so that its input and output are absent. Call "
    "`layer(x)`"
)


class Tap:
    """Observe the attention of ``model`` while the context is open.

    Nothing of the model changes: forward hooks that return nothing, and while it runs a torch
    function mode and a lookup of transformers, all removed whatever happened. A failure while
    observing is kept in ``failures`` and ends the observing; the model's forward goes on. Only an
    observer that asks for it changes what the model computes: see :meth:`Observer.attention`.

    Args:
        model: The observed model.
        special_token_ids: Input ids that count as special tokens.
    """

    def __init__(self, model: nn.Module, special_token_ids: Iterable[int] = ()) -> None:
        self._model = model
        self.failures: list[Exception] = []
        #: what was seen and what of it was measured
        self.coverage = Coverage()
        #: what observing took
        self.stopwatch = Stopwatch()
        #: whether the model itself was called, rather than modules in it
        self.called = False
        #: whether any module takes token ids
        self.takes_ids = False
        #: modules that look like attention and ran without showing any: path -> class name
        self.unobserved: dict[str, str] = {}
        self._observer: Observer
        self._search = ProjectionSearch(self._observing)
        devices = {p.device.type for p in model.parameters()} | {"cpu", device_of(model).type}
        self._devices = sorted(devices - {"meta"})
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
        self._evidence = CallEvidence(tuple(special_token_ids))
        self._tracer = SoftmaxTracer(self._written, lambda: self._stack.frames[-1].name)
        self._stack = ModuleStack(ModuleTree(model))

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The model's modules by cleaned path."""
        return self._stack.tree.modules

    @property
    def scripted(self) -> list[str]:
        """Paths of TorchScript modules that compute attention."""
        return self._stack.tree.scripted

    def name_of(self, path: str, prefix: str = "") -> str:
        """Name one of the model's modules for a person; see :func:`lightning_geo.taps.tree.name_of`."""
        return name_of(path, self._model, prefix)

    @property
    def unprojected(self) -> dict[str, list[str]]:
        """Attention modules and the roles whose projections could not be found."""
        return self._search.missing

    @contextlib.contextmanager
    def open(
        self,
        observer: Observer,
        *,
        training: bool = False,
        replays: bool = False,
        twin: nn.Module | None = None,
    ) -> Iterator[Tap]:
        """Show ``observer`` what happens until the context ends.

        Args:
            observer: What is shown.
            training: Whether calls count only where they are part of training.
            replays: Whether replays that begin inside are shown, rather than what runs between them.
            twin: A copy of the model that runs in its place.
        """
        self._observer, self._depth, self._training = observer, replay_depth() + replays, training
        wanted = getattr(observer, "reads_projections", False)
        self._search.observer = cast(ProjectionObserver, observer) if wanted else None
        if not self._stack.tree.is_of(self._model):
            self._stack.tree = ModuleTree(self._model)
            self._search.forget()
        model, tree = self._model, self._stack.tree
        leave = self._harmless(self._leave)
        handles = []
        try:
            if twin is not None and twin is not model:
                self._model, self._stack.tree = twin, tree.of(twin)
                self._search.forget()
            for name, module in self.modules.items():
                if is_scripted(module) or type(module).forward is nn.Module.forward:
                    continue  # it takes no hooks, or is a mere list: nothing would take them off a copy
                enter = self._harmless(self._enter(name))
                handles.append(module.register_forward_pre_hook(Fleeting(enter), with_kwargs=True))
                handles.append(module.register_forward_hook(Fleeting(leave), always_call=True))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._start_over()
            if self._model is not model:
                self._model, self._stack.tree = model, tree
                self._search.forget()

    def _start_over(self) -> None:
        """Be as before the model ran."""
        SWITCHES.disconnect(self)
        self._forget()

    def _forget(self) -> None:
        """Drop every reference to the model's activations."""
        self._stack.clear()
        self._passing.clear()
        self._tracer.clear()
        self._evidence.clear()
        self._search.start_over()
        self._answer = None

    def _fail(self, error: Exception) -> None:
        """Keep what went wrong, without the activations that its frames hold, and look at nothing more."""
        self.failures.append(let_go(error))
        running = [frame.module for frame in self._stack.frames[:1]]
        if not running:
            SWITCHES.disconnect(self)
        self._forget()
        # the switches stay on until the outermost module ends: others may be on top of them by now
        self._passing = running

    # -- modules start and end

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.busy or self._depth != replay_depth() or self._passes_over(module):
                return
            with torch._C.DisableTorchFunction():  # looking at tensors is no event for the mode
                self._begin(name, module, args, kwargs)

        return hook

    def _begin(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not name:
            self._start_over()
            self.called = True
        frame = Frame(name, module, given=given_to(module, args, kwargs))
        if self._stack.frames:
            self._imply(name)
        else:
            SWITCHES.connect(self)
            self._leave_out_scripted(name)
            self._evidence.begin(frame, self._model.buffers())
        frame.input_ids = input_ids_in(args, kwargs)
        frame.evidence = evidence_in(module, args, kwargs)
        if self._stack.takes_input(name):
            frame.input = token_states((*args, *kwargs.values()))
        self.takes_ids |= frame.input_ids is not None
        if name in self._stack.tree.linear and self._search.observer is not None and args:
            frame.x = args[0]
            self._search.linear_starts(module, args[0])
        self._stack.push(frame)

    def _imply(self, name: str) -> None:
        """A module starts, or its parameters are used: those around it that were not called run as well."""
        while self._stack.ends_before(name):
            self._end()
        for frame in self._stack.implied_by(name):
            self._stack.push(frame)

    def _passes_over(self, module: nn.Module) -> bool:
        """Whether a module starts in a call that does not count, or borrowed its call for a whole step."""
        if self._passing:
            if module is self._passing[0]:
                self._passing.append(module)
            return True
        if self.failures:
            return True  # the sample is lost: what else it sees would cost time and memory for nothing
        if module is self._model and getattr(module.forward, "__name__", "") == "wrapped_forward":
            return True  # of Lightning, for a strategy that wraps the module: what it calls inside counts
        if self._stack.frames or not self._training or begins_training():
            return False
        self._passing.append(module)
        self.passed_over += 1
        return True

    def _leave(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if self._passing and not self.busy and self._depth == replay_depth():
            if module is self._passing[0]:
                self._passing.pop()
                if self.failures and not self._passing:
                    SWITCHES.disconnect(self)
            return
        if self.busy or self._depth != replay_depth() or not self._stack.runs(module):
            return
        with torch._C.DisableTorchFunction():
            while self._stack.frames[-1].module is not module:
                self._end()
            self._end(result)

    def _end(self, result: Any = None) -> None:
        """The innermost running module ends."""
        frames, items = self._stack.frames, self._stack.tree.items
        frame = frames[-1]
        with self._observing():
            self._settle(frame)
        if frame.name in items:
            self._search.settle()
        frames.pop()
        if frame.x is not None and isinstance(result, Tensor) and frames:
            if self._stack.records_linears():
                name = frame.name.rpartition(".")[2]
                frames[-1].linears.append(Run(name, frame.module, frame.x, result))
            return
        if not frames:
            SWITCHES.disconnect(self)
        if frame.implied:
            if frame.keys and frame.name in items:
                self.coverage.leave_out(frame.name, _PAST_CALL)
        elif frame.keys:
            with self._observing():
                values = tuple(result.values()) if isinstance(result, Mapping) else result
                self._report(frame, token_states(values if isinstance(values, (tuple, list)) else (values,)))
        elif looks_like_attention(frame.module) and not frame.gathered:
            self.unobserved[frame.name] = type(frame.module).__name__

    def _settle(self, frame: Frame) -> None:
        """Show what waited for the end of a module: parts of one attention, softmaxes used in odd ways."""
        held, frame.held = frame.held, []
        if held:
            self._show_all(frame, held)
        is_layer = frame.name in self._stack.tree.items and not isinstance(
            frame.module, (nn.Softmax, nn.Sequential)
        )
        if is_layer or len(self._stack.frames) == 1:
            for softmax in self._tracer.unmultiplied(frame.name):
                if softmax.place not in {key.module for key in frame.keys}:
                    self._written(WrittenAttention((softmax,)), softmax.place)
                softmax.let_go()

    def _report(self, frame: Frame, output: Tensor | None) -> None:
        """Show what a module that attends was given and returned, by sequence or by document."""
        is_block = self._stack.is_block(frame)
        if frame.issued is None and not is_block:
            return
        before, after = (in_rows(batch_first(x, frame), frame.documents) for x in (frame.input, output))
        if after is None or before is None or before.shape != after.shape:
            before = None
        mask = None if after is None else fitting(frame.query_mask, after)
        parts = [(before, after, mask)]
        if after is not None and frame.documents is not None:
            if not frame.documents.holds(after):
                self.coverage.leave_out(frame.name, _OTHER_TOKENS)
                return
            inputs = frame.documents.split_hidden(after if before is None else before)
            outputs = frame.documents.split_hidden(after, mask)
            pairs = zip(inputs, outputs, strict=True)
            parts = [(None if before is None else x, y, real) for (x, _), (y, real) in pairs]
        for before, after, mask in parts:
            if frame.issued is not None and after is not None:
                self._observer.attention_module(frame.issued, after, mask)
            if is_block:
                self._observer.block(BlockCall(frame.name, tuple(frame.keys), before, after, mask))

    # -- attention happens

    def routed(self, module: nn.Module | None, translate: Callable[[], AttentionCall], result: Any) -> Any:
        """Transformers ran an attention function for ``module``, or the running one called flex_attention."""
        self._harmless(self._routed)(module, translate, result)
        return self._answered(result)

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """A torch function returned."""
        if self.busy or not self._stack.frames:
            return result
        started = self.stopwatch.start()
        try:
            with torch.no_grad():
                self._function(func, args, kwargs, result)
        except (LeftOutError, UnknownAxesError, PackedCallError) as error:
            self._leave_out(str(error))
        except Exception as error:
            self._fail(error)
        self.stopwatch.stop(started)
        if self._answer is None:
            return result
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
            self._fail(error)
            return result
        finally:
            self.busy = busy

    def _leave_out_scripted(self, root: str) -> None:
        """The attention of TorchScript modules inside one that starts: nothing tells whether it runs."""
        for name in self.scripted:
            if name.startswith(f"{root}." if root else ""):
                self._leave_out(SCRIPTED, name)

    def _routed(self, module: nn.Module | None, translate: Callable[[], AttentionCall], result: Any) -> None:
        if not self._stack.frames:
            return  # not of the observed model
        with self._observing():
            call = translate()
            assert call.query is not None
            assert call.key is not None
            query, key = self._evidence.attended(call.query, call.key, result)
            name = self._stack.tree.names.get(id(module), self._stack.frames[-1].name)
            self._see(Held(call, name, query, key, result))

    def _function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow a torch function; attention that it computes is seen."""
        if func is F.scaled_dot_product_attention:
            with self._observing():
                call = sdpa_call(self._axes, result, *args, **kwargs)
                query, key = self._evidence.attended(*sdpa_inputs(args, kwargs), result)
                self._see(Held(call, self._stack.frames[-1].name, query, key, result))
        elif func is F.multi_head_attention_forward:
            with self._observing():
                call, behind = multi_head_call(args, kwargs)
                query, key = self._evidence.attended(*multi_head_inputs(args, kwargs), result)
                name, given = self._stack.frames[-1].name, (args, kwargs)
                self._see(Held(call, name, query, key, result, given, behind=behind))
        elif func in VARLEN:
            with self._observing():
                call = varlen_call(func, args, kwargs, result)
                query, key = self._evidence.attended(*varlen_inputs(func, args, kwargs), result)
                self._see(Held(call, self._stack.frames[-1].name, query, key, result))
        else:
            for x in args:  # a layer whose parameters are used from outside runs, although it was not called
                item = self._stack.uses(x) if isinstance(x, nn.Parameter) else None
                if item is not None:
                    with self._observing():
                        self._imply(f"{item}.")
            self._evidence.follow(func, args, kwargs, result)
            self._tracer.see(func, args, kwargs, result)

    def _axes(self, x: Tensor, key: Tensor | None) -> Axes:
        return self._evidence.axes(x, key, self._stack)

    def _written(self, attention: WrittenAttention, place: str | None = None) -> None:
        """An attention was recognised in products and softmaxes."""
        with self._observing():
            calls = written_calls(attention, self._axes, self._evidence.masks)
            for softmax, call in zip(attention.softmaxes, calls, strict=True):
                query, key = self._evidence.attended(*softmax.given, attention.product)
                name = self._stack.frames[-1].name if place is None else place
                self._see(Held(call, name, query, key, attention.product))

    def _leave_out(self, reason: str, name: str | None = None) -> None:
        """Count an attention call that cannot be measured."""
        self.coverage.seen += 1
        self.coverage.leave_out(self._stack.frames[-1].name if name is None else name, reason)

    def _see(self, held: Held) -> None:
        """An attention was computed: show it, or hold it until the others that it belongs to are there."""
        call, frames = held.call, self._stack.frames
        self._evidence.place(held, self._stack)
        if between_channels(call, tokens_in(frames)):
            self._leave_out(_CHANNELS, held.module)
            return
        if self._stack.attended_with(call.query, call.key):
            self.coverage.leave_out(held.module, _AGAIN)
            return
        owner = gatherer(held, self._stack.inside(), frames, self.modules)
        if owner is None:
            self._show(held)
            return
        if owner.held and not owner.held[-1].beside(held):
            waited, owner.held = owner.held, []
            self._show_all(owner, waited)
        owner.held.append(held)
        for frame in frames[frames.index(owner) + 1 :]:
            frame.gathered = True

    def _show_all(self, frame: Frame, held: list[Held]) -> None:
        """Show what was held, parts of one attention as one."""
        resolved = resolve(frame, held, tokens_in([frame]))
        for one in resolved.calls:
            self._show(one, more=one is not resolved.calls[0] and resolved.shares)
        if resolved.reason:
            self._leave_out(resolved.reason, frame.name)

    def _show(self, held: Held, *, more: bool = False) -> None:
        """Show the observer one attention call.

        Args:
            held: It, and what is known of it.
            more: Whether it holds more sequences of the call that was shown before.
        """
        call = held.call
        try:
            self._evidence.tell_tokens(held, self._stack)
        except PackedCallError as error:
            self._leave_out(str(error), held.module)
            return
        if call.offset is None and not call.cross:
            self.coverage.leave_out(held.module, _NO_PLACE)
        key = self._stack.key(held.module, cross=call.cross, more=more)
        self._stack.note(key, call)
        self.coverage.seen += 1
        answer = self._observer.attention(key, call)
        self.coverage.measured += 1
        if isinstance(answer, Tensor):
            check_scalable(self.name_of(key.module), call, answer)
        elif answer is not None and call.output is None:
            answer.absence = "its heads' outputs cannot be told from what the model computes"
            answer = None
        if answer is not None:
            self._ask(held, answer)
        if self._search.observer is not None:
            runs = [run for frame in self._stack.inside() for run in frame.linears]
            self._search.attention(key, call, runs)

    def _ask(self, held: Held, answer: Tensor | SlopeHook) -> None:
        """Have a call's result scaled or listened at; one that was held is the model's already."""
        if not held.late:
            self._answer = held.call, answer
        elif isinstance(answer, SlopeHook):
            answer.attach(held.result, held.call, held.multi_head)
        else:
            raise LookupError(
                f"{self.name_of(held.module)!r} computes its heads one by one: they cannot be scaled"
            )

    # -- contexts

    def _harmless(self, function: Callable[..., None]) -> Callable[..., None]:
        """Keep what goes wrong in ``function`` from the model that is running."""

        def guarded(*args: Any) -> None:
            try:
                function(*args)
            except (LeftOutError, UnknownAxesError, PackedCallError) as error:
                self._leave_out(str(error))
            except Exception as error:
                self._fail(error)

        return guarded

    @contextlib.contextmanager
    def _observing(self) -> Iterator[None]:
        """Run our own work: without gradient, in full precision, and seen by nobody."""
        busy, self.busy, started = self.busy, True, self.stopwatch.start()
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(torch._C.DisableTorchFunction())
                for device in self._devices:
                    stack.enter_context(torch.autocast(device, enabled=False))
                yield
        finally:
            self.busy = busy
            if not busy:
                self.stopwatch.stop(started)
