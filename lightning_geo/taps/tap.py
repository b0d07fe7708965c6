"""The tap: observes one model's attention calls while it is open, and leaves nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_geo.clock import Stopwatch
from lightning_geo.replay import device_of, replay_depth
from lightning_geo.scripted import is_scripted, scripted_attention
from lightning_geo.taps.axes import Axes, UnknownAxesError, declared_heads, find_axes
from lightning_geo.taps.by_hand import SoftmaxTracer, WrittenAttention
from lightning_geo.taps.call import AttentionCall, BlockCall, CallKey
from lightning_geo.taps.coverage import Coverage, LeftOutError
from lightning_geo.taps.documents import Documents, PackedCallError
from lightning_geo.taps.evidence import evidence_in
from lightning_geo.taps.folds import Folds
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
from lightning_geo.taps.masks import MaskReader
from lightning_geo.taps.observer import Observer, ProjectionObserver
from lightning_geo.taps.origins import Origins, tensors_in
from lightning_geo.taps.positions import set_positions
from lightning_geo.taps.projections import Run, is_linear
from lightning_geo.taps.scaling import check_scalable, scale_multi_head, scale_result
from lightning_geo.taps.sdpa import multi_head_call, multi_head_inputs, sdpa_call
from lightning_geo.taps.search import ProjectionSearch
from lightning_geo.taps.slopes import SlopeHook
from lightning_geo.taps.switches import SWITCHES
from lightning_geo.taps.tokens import keys_by_masks, set_token_masks, special_tokens_of
from lightning_geo.taps.training import begins_training
from lightning_geo.taps.tree import clean_name, elements_of, looks_like_attention, name_of
from lightning_geo.taps.varlen import VARLEN, varlen_call, varlen_inputs
from lightning_geo.taps.written import written_calls

__all__ = ["SCRIPTED", "Observer", "Tap"]

#: Why a scripted module's attention gives no numbers.
SCRIPTED = (
    "its module is TorchScript, which shows nothing of its inside; observe it before `torch.jit.script`"
)

_CHANNELS = "it is attention between channels, not between tokens, for which these metrics are not defined"
_OTHER_TOKENS = "its hidden states are not the tokens of the packed rows that its attention saw"
_PAST_CALL = (
    "the layer was run as `layer.forward(x)`, past its hooks, so that its input and output are absent. Call "
    "`layer(x)`"
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
        #: what observing took
        self.stopwatch = Stopwatch()
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
        #: attention module -> its layer's run, how often that ran before, and its attentions in this run
        self._runs: dict[str, tuple[Frame, int, int]] = {}
        #: real tokens of sequences, as self-attention tells them: source, batch and length -> [B, N]
        self._query_masks: dict[tuple[int | None, int, int], Tensor | None] = {}
        #: names of the model's arguments by source
        self._arguments: dict[int, str] = {}
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
        self._origins = Origins()
        self._folds = Folds()
        self._masks = MaskReader()
        self._documents = Documents()
        self._tracer = SoftmaxTracer(self._written, lambda: self._frames[-1].name)
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
        #: items that hold a list themselves: an attention beside that list is a layer of its own
        stages = {e.name for found in elements.values() for e in found[:-1]}
        innermost = {name: found[-1].name for name, found in elements.items() if found}
        self._beside = {name for name, item in innermost.items() if item in stages and name != item}
        #: parameter -> the innermost list item that it belongs to
        self._item_of = {
            id(parameter): elements[name][-1].name
            for name, module in self.modules.items()
            if elements[name]
            for parameter in module.parameters(recurse=False)
        }

    def name_of(self, path: str, prefix: str = "") -> str:
        """Name one of the model's modules for a person; see :func:`lightning_geo.taps.tree.name_of`."""
        return name_of(path, self._model, prefix)

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
        self._runs.clear()
        self._tracer.clear()
        self._origins.clear()
        self._folds.clear()
        self._masks.clear()
        self._documents.start_over()
        self._search.start_over()
        self._answer = None

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
        if self._frames:
            self._imply(name)
        else:
            SWITCHES.connect(self)
            self._leave_out_scripted(name)
            self._origins.make(self._model.buffers())
            for argument, value in frame.given.items():
                found = list(
                    tensors_in([value, *value.values()] if isinstance(value, Mapping) else [value], {})
                )
                self._origins.give(found)
                for x in found:
                    origin = self._origins.of(x)
                    if origin is not None:
                        self._arguments[origin.source] = argument
        if name in self._owners:
            prefix = f"{name}." if name else ""
            self._runs = {k: run for k, run in self._runs.items() if not k.startswith(prefix)}
        frame.input_ids = input_ids_in(args, kwargs)
        frame.evidence = evidence_in(module, args, kwargs)
        if name in self._items or name in self._beside or name not in self._listed:
            frame.input = token_states((*args, *kwargs.values()))
        self.takes_ids |= frame.input_ids is not None
        if name in self._linear and self._search.observer is not None and args:
            frame.x = args[0]
            self._search.linear_starts(module, args[0])
        self._frames.append(frame)

    def _imply(self, name: str) -> None:
        """A module starts, or its parameters are used: those around it that were not called run as well."""
        while self._frames[-1].implied and not name.startswith(f"{self._frames[-1].name}."):
            self._end()
        around = self._frames[-1].name
        if not name.startswith(f"{around}." if around else ""):
            return  # shared with what is running
        parts = name.split(".")
        for depth in range(around.count(".") + 2 if around else 1, len(parts)):
            path = ".".join(parts[:depth])
            module = self.modules.get(path)
            if module is not None and type(module).forward is not nn.Module.forward:
                self._frames.append(Frame(path, module, implied=True))

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
        with torch._C.DisableTorchFunction():
            while self._frames[-1].module is not module:
                self._end()
            self._end(result)

    def _end(self, result: Any = None) -> None:
        """The innermost running module ends."""
        frame = self._frames[-1]
        with self._observing():
            self._settle(frame)
        if frame.name in self._items:
            self._search.settle()
        self._frames.pop()
        if frame.x is not None and isinstance(result, Tensor) and self._frames:
            # outside of layers there are larger ones, the last being the vocabulary's
            if not self._items or any(outer.name in self._items for outer in self._frames):
                self._frames[-1].linears.append(
                    Run(frame.name.rpartition(".")[2], frame.module, frame.x, result)
                )
            return
        if not self._frames:
            SWITCHES.disconnect(self)
        if frame.implied:
            if frame.keys and frame.name in self._items:
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
        if len(self._frames) == 1 or (
            frame.name in self._items and not isinstance(frame.module, (nn.Softmax, nn.Sequential))
        ):
            for softmax in self._tracer.unmultiplied(frame.name):
                if softmax.place not in {key.module for key in frame.keys}:
                    self._written(WrittenAttention((softmax,)), softmax.place)

    def _report(self, frame: Frame, output: Tensor | None) -> None:
        """Show what a module that attends was given and returned, by sequence or by document."""
        alone = frame.name in self._beside or frame.name not in self._listed
        is_block = frame.name in self._items or (frame.issued is not None and alone)
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
        if self.busy or not self._frames:
            return result
        started = self.stopwatch.start()
        try:
            with torch.no_grad():
                self._function(func, args, kwargs, result)
        except (LeftOutError, UnknownAxesError, PackedCallError) as error:
            self._leave_out(str(error))
        except Exception as error:
            self.failures.append(error)
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
            self.failures.append(error)
            return result
        finally:
            self.busy = busy

    def _leave_out_scripted(self, root: str) -> None:
        """The attention of TorchScript modules inside one that starts: nothing tells whether it runs."""
        for name in self.scripted:
            if name.startswith(f"{root}." if root else ""):
                self._leave_out(SCRIPTED, name)

    def _routed(self, module: nn.Module | None, translate: Callable[[], AttentionCall], result: Any) -> None:
        if not self._frames:
            return  # not of the observed model
        with self._observing():
            call = translate()
            query, key = self._origins.of(call.query), self._origins.of(call.key)
            self._origins.attended(call.query, result)
            name = self._names.get(id(module), self._frames[-1].name)
            self._see(Held(call, name, query, key, result))

    def _function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow a torch function; attention that it computes is seen."""
        if func is F.scaled_dot_product_attention:
            with self._observing():
                call = sdpa_call(self._axes, result, *args, **kwargs)
                inputs = [*args, *(kwargs[name] for name in ("query", "key") if name in kwargs)]
                query, key = (self._origins.of(x) for x in inputs[:2])
                self._origins.attended(inputs[0], result)
                self._see(Held(call, self._frames[-1].name, query, key, result))
        elif func is F.multi_head_attention_forward:
            with self._observing():
                call, behind = multi_head_call(args, kwargs)
                inputs = multi_head_inputs(args, kwargs)
                query, key = (self._origins.of(x) for x in inputs)
                self._origins.attended(inputs[0], result)
                self._see(
                    Held(call, self._frames[-1].name, query, key, result, (args, kwargs), behind=behind)
                )
        elif func in VARLEN:
            with self._observing():
                call = varlen_call(func, args, kwargs, result)
                query, key = (self._origins.of(x) for x in varlen_inputs(func, args, kwargs))
                self._origins.attended(varlen_inputs(func, args, kwargs)[0], result)
                self._see(Held(call, self._frames[-1].name, query, key, result))
        else:
            self._use_parameters(args)
            self._origins.follow(func, args, kwargs, result)
            self._folds.follow(func, args, kwargs, result)
            self._tracer.see(func, args, kwargs, result)

    def _use_parameters(self, args: tuple[Any, ...]) -> None:
        """A layer whose parameters are used from outside runs, although it was not called."""
        for x in args:
            if isinstance(x, nn.Parameter):
                item = self._item_of.get(id(x))
                if item is not None and all(frame.name != item for frame in self._frames):
                    with self._observing():
                        self._imply(f"{item}.")

    def _axes(self, x: Tensor) -> Axes:
        """Which axis of queries is heads."""
        declared = next((n for f in reversed(self._inside()) if (n := declared_heads(f.module))), None)
        return find_axes(x, declared, tokens_in(self._frames, x.shape), self._folds.heads_first)

    def _written(self, attention: WrittenAttention, place: str | None = None) -> None:
        """An attention was recognised in products and softmaxes."""
        with self._observing():
            calls = written_calls(attention, self._axes, self._masks)
            for softmax, call in zip(attention.softmaxes, calls, strict=True):
                query, key = self._origins.of(softmax.given[0]), self._origins.of(softmax.given[1])
                if attention.product is not None:
                    self._origins.attended(softmax.given[0], attention.product)
                name = self._frames[-1].name if place is None else place
                self._see(Held(call, name, query, key, attention.product))

    def _leave_out(self, reason: str, name: str | None = None) -> None:
        """Count an attention call that cannot be measured."""
        self.coverage.seen += 1
        self.coverage.leave_out(self._frames[-1].name if name is None else name, reason)

    def _see(self, held: Held) -> None:
        """An attention was computed: show it, or hold it until the others that it belongs to are there."""
        call = held.call
        module = self.modules.get(held.module, self._frames[-1].module)
        set_positions(call, module, self._frames, held.query, held.key, behind=held.behind)
        shape = call.lengths[0], call.heads
        call.masks = tuple(self._masks.laid_out(mask, shape) for mask in call.masks)
        if between_channels(call, tokens_in(self._frames, torch.Size())):
            self._leave_out(_CHANNELS, held.module)
            return
        owner = gatherer(held, self._inside(), self._frames, self.modules)
        if owner is None:
            self._show(held)
            return
        if owner.held and not owner.held[-1].beside(held):
            waited, owner.held = owner.held, []
            self._show_all(owner, waited)
        owner.held.append(held)
        for frame in self._frames[self._frames.index(owner) + 1 :]:
            frame.gathered = True

    def _show_all(self, frame: Frame, held: list[Held]) -> None:
        """Show what was held, parts of one attention as one."""
        resolved = resolve(frame, held, tokens_in([frame], torch.Size()))
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
        batch, queries, _ = call.lengths
        source = None if held.query is None else held.query.source
        names = tuple(None if o is None else self._arguments.get(o.source) for o in (held.query, held.key))
        place = source, batch, queries
        known = self._query_masks.get(place)
        told = set_token_masks(call, self._frames, (names[0], names[1]), self._masks, known)
        try:
            call.documents = self._documents.of(call, [frame.evidence for frame in self._frames])
        except PackedCallError as error:
            self._leave_out(str(error), held.module)
            return
        if call.documents is not None and not told:
            # a token that nobody but itself sees is a document, not padding
            call.query_mask = call.key_mask = keys_by_masks(call, self._masks, alone=True)
        key = self._key(held, more=more)
        if not call.cross:
            self._query_masks[place] = call.query_mask
        call.special = special_tokens_of(self._frames, self._special_ids, call)
        frame = self._frames[-1]
        frame.issued = frame.issued or key  # of several parts, the module's output is the first one's
        frame.sequence_first = getattr(frame.module, "batch_first", True) is False
        for outer in self._frames:
            if key not in outer.keys:
                outer.keys.append(key)
            if not call.cross or outer.query_mask is None:
                outer.query_mask = call.query_mask
            if not call.cross or outer.documents is None:
                outer.documents = call.documents
            outer.sequence_first = frame.sequence_first
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
            self._search.attention(key, call, [run for f in self._inside() for run in f.linears])

    def _ask(self, held: Held, answer: Tensor | SlopeHook) -> None:
        """Have a call's result scaled or listened at; one that was held is the model's already."""
        if held.late and isinstance(answer, Tensor):
            raise LookupError(
                f"{self.name_of(held.module)!r} computes its heads one by one: they cannot be scaled"
            )
        if held.late and isinstance(answer, SlopeHook):
            answer.attach(held.result, held.call, held.multi_head)
            return
        self._answer = held.call, answer

    def _key(self, held: Held, *, more: bool) -> CallKey:
        """Number the call: by the runs of its layer, and within a run by its module's attentions."""
        run = next((f for f in reversed(self._frames) if f.name in self._items), None)
        run = run or next((f for f in self._frames if f.name == held.module), self._frames[0])
        before, repeat, part = self._runs.get(held.module, (None, -1, 0))
        if before is not run:
            repeat, part = repeat + 1, 0
        elif not more:
            part += 1
        self._runs[held.module] = run, repeat, part
        return CallKey(held.module, repeat, held.call.cross, part)

    def _inside(self) -> list[Frame]:
        """The modules that are running within the innermost list item, that included."""
        for index in range(len(self._frames) - 1, -1, -1):
            if self._frames[index].name in self._items:
                return self._frames[index:]
        return self._frames

    # -- contexts

    def _harmless(self, function: Callable[..., None]) -> Callable[..., None]:
        """Keep what goes wrong in ``function`` from the model that is running."""

        def guarded(*args: Any) -> None:
            try:
                function(*args)
            except (LeftOutError, UnknownAxesError, PackedCallError) as error:
                self._leave_out(str(error))
            except Exception as error:
                self.failures.append(error)

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
