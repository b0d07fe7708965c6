"""The tap: observes one model's attention calls while it is open, and leaves no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_geo.observe.attention_events import Asked, AttentionEvents
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.counted_calls import CountedCalls
from lightning_geo.observe.coverage import Coverage, LeftOutError
from lightning_geo.observe.evidence.axes import UnknownAxesError
from lightning_geo.observe.heads.projection_search import ProjectionObserver
from lightning_geo.observe.interception import INTERCEPTION
from lightning_geo.observe.layers.module_stack import ModuleStack, ModuleTree, has_forward
from lightning_geo.observe.layers.numbering import name_of
from lightning_geo.observe.module_events import ModuleEvents
from lightning_geo.observe.observer import Observer
from lightning_geo.observe.own_work import OwnWork
from lightning_geo.observe.packed.documents import PackedCallError
from lightning_geo.observe.replay.call_hooks import Fleeting
from lightning_geo.observe.replay.torchscript import is_scripted
from lightning_geo.utils._lightning import borrows_forward
from lightning_geo.utils._torch import without_function_modes
from lightning_geo.utils.errors import let_go

__all__ = ["Observer", "Tap"]


class Tap:
    """Observe the attention of ``model`` while the context is open.

    The model stays the same: the tap adds forward hooks that return nothing and, while the model runs, a
    torch function mode and a patched lookup in transformers, and removes all of them in any case. A failure
    to observe is kept in ``failures`` and ends observation; the model's forward pass continues. The model's
    results change only at an observer's request: see :meth:`Observer.attention`.

    Args:
        model: The observed model.
        special_token_ids: Input ids that count as special tokens.
    """

    def __init__(self, model: nn.Module, special_token_ids: Iterable[int] = ()) -> None:
        self._model = model
        self.failures: list[Exception] = []
        #: whether the model itself was called, not only modules in it
        self.called = False
        self._work = OwnWork(model)
        self._calls = CountedCalls()
        self._stack = ModuleStack(ModuleTree(model))
        self._events = AttentionEvents(
            self._stack,
            self._work,
            special_token_ids,
            imply=lambda name: self._modules.imply(name),
            name_of=lambda path: self.name_of(path),
        )
        self._modules = ModuleEvents(self._stack, self._events)
        #: reads what the device found out about masks, and returns modules whose calls have no values for it
        self.settle_masks = self._events.settle_masks

    @property
    def busy(self) -> bool:
        """Whether the running code is not the model's, or part of a call that was already seen."""
        return self._work.busy

    @busy.setter
    def busy(self, busy: bool) -> None:
        self._work.busy = busy

    @property
    def coverage(self) -> Coverage:
        """Attention calls since the sample began: seen, measured and left out."""
        return self._events.coverage

    @property
    def passed_over(self) -> int:
        """Calls since the sample began that were skipped because they are not part of training."""
        return self._calls.passed_over

    @passed_over.setter
    def passed_over(self, count: int) -> None:
        self._calls.passed_over = count

    @property
    def seconds(self) -> float:
        """Time that observing took since the sample began."""
        return self._work.stopwatch.seconds

    def begin_sample(self, asked: Asked = lambda call: True, *, timed: bool = True) -> None:
        """Reset counts, time, if it is kept, and failures; coverage counts the calls asked for."""
        self.failures.clear()
        self.unobserved.clear()
        self.passed_over = 0
        self._work.begin(timed=timed)
        self._events.begin_sample(asked)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The model's own modules by cleaned path, also while a copy of it runs."""
        return self._stack.tree.own_modules

    @property
    def takes_ids(self) -> bool:
        """Whether any module takes token ids."""
        return self._modules.takes_ids

    @property
    def unobserved(self) -> dict[str, str]:
        """Modules that look like attention but showed none when they ran: path -> class name."""
        return self._modules.unobserved

    @property
    def scripted(self) -> list[str]:
        """Paths of TorchScript modules that compute attention."""
        return self._stack.tree.scripted

    def name_of(self, path: str, prefix: str = "") -> str:
        """Name one of the model's modules in messages; see :func:`.name_of`."""
        return name_of(path, self._model, prefix)

    @property
    def unprojected(self) -> dict[str, list[str]]:
        """Attention modules with the roles whose projections are unknown."""
        return self._events.search.missing

    @contextlib.contextmanager
    def open(
        self,
        observer: Observer,
        *,
        training: bool = False,
        replays: bool = False,
        twin: nn.Module | None = None,
    ) -> Iterator[Tap]:
        """Show the model's attention calls to ``observer`` while the context is open.

        Args:
            observer: Receives the calls.
            training: Whether to show only calls that are part of training.
            replays: Whether to show replays that begin inside the context, rather than calls between them.
            twin: A copy of the model that runs in its place.
        """
        self._events.observer = observer
        self._calls.open(training=training, replays=replays)
        reads_projections = getattr(observer, "reads_projections", False)
        self._events.search.observer = cast(ProjectionObserver, observer) if reads_projections else None
        if not self._stack.tree.is_of(self._model):
            self._stack.tree = ModuleTree(self._model)
            self._events.search.forget()
        model, tree = self._model, self._stack.tree
        handles: list[RemovableHandle] = []
        try:
            if twin is not None and twin is not model:
                self._model, self._stack.tree = twin, tree.of(twin)
                self._events.search.forget()
            handles.extend(self._hooks(self._stack.tree.modules))
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._start_over()
            self._events.let_go()
            if self._model is not model:
                self._model, self._stack.tree = model, tree
                self._events.search.forget()

    def _hooks(self, modules: Mapping[str, nn.Module]) -> Iterator[RemovableHandle]:
        leave = self._harmless(self._leave)
        for name, module in modules.items():
            # TorchScript takes no hooks; a module that is never called would keep its hooks in a copy
            if not is_scripted(module) and has_forward(module):
                enter = self._harmless(self._enter(name))
                yield module.register_forward_pre_hook(Fleeting(enter), with_kwargs=True)
                yield module.register_forward_hook(Fleeting(leave), always_call=True)

    def _start_over(self) -> None:
        """Disconnect, and forget the model's run."""
        INTERCEPTION.disconnect(self)
        self._forget()

    def _forget(self) -> None:
        """Drop every reference to the model's activations."""
        self._stack.clear()
        self._calls.skip_from([])
        self._events.clear()

    def _fail(self, error: Exception) -> None:
        """Keep an error, without the activations in its stack frames, and stop observing."""
        self.failures.append(let_go(error))
        running = [frame.module for frame in self._stack.frames[:1]]
        if not running:
            INTERCEPTION.disconnect(self)
        self._forget()
        # Other tools may have patched the same functions since: undoing ours now would undo theirs. Skip
        # everything until the outermost module ends, and undo the interception then.
        self._calls.skip_from(running)

    # -- modules start and end

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._work.busy or not self._calls.at_own_depth or self._passes_over(module):
                return
            # Our own tensor functions would reach the torch function mode as events of the model.
            with without_function_modes():
                self._begin(name, module, args, kwargs)

        return hook

    def _begin(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not name:
            self._start_over()
            self.called = True
        if not self._stack.frames:
            INTERCEPTION.connect(self)
            self._events.leave_out_scripted(name)
        self._modules.start(name, module, args, kwargs, self._model.buffers())

    def _passes_over(self, module: nn.Module) -> bool:
        """Whether to ignore a module that starts."""
        if not self._calls.skipping:
            if self.failures:
                return True  # a failure has already cost the sample: save the time and memory of the rest
            if module is self._model and borrows_forward(module):
                # Lightning routes a whole step through the module's call when its strategy wraps the module.
                # Ignore this call; the modules that the step calls count by themselves.
                return True
        return self._calls.begins_skipped(module, outermost=not self._stack.frames)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if self._work.busy or not self._calls.at_own_depth:
            return
        if self._calls.skipping:
            self._calls.ends_skipped(module)
            if self.failures and not self._calls.skipping:
                INTERCEPTION.disconnect(self)
            return
        if not self._stack.runs(module):
            return
        with without_function_modes():
            while self._stack.frames[-1].module is not module:
                self._modules.end()
            self._modules.end(result)
            if not self._stack.frames:
                INTERCEPTION.disconnect(self)

    # -- attention happens

    def routed(self, module: nn.Module | None, translate: Callable[[], AttentionCall], result: Any) -> Any:
        """Take a call of transformers' attention function for ``module``, or of flex_attention (``None``)."""
        self._harmless(self._events.routed)(module, translate, result)
        return self._intervened(result)

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Take a torch function that returned."""
        if self._work.busy or not self._stack.frames:
            return result
        started = self._work.stopwatch.start()
        try:
            with torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext():
                self._events.function(func, args, kwargs, result)
        except (LeftOutError, UnknownAxesError, PackedCallError) as error:
            self._events.leave_out(str(error))
        except Exception as error:
            self._fail(error)
        self._work.stopwatch.stop(started)
        return self._intervened(result, (args, kwargs) if func is F.multi_head_attention_forward else None)

    def _intervened(
        self, result: Any, multi_head: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    ) -> Any:
        """Return the result for the model: unchanged unless the observer requested scaling."""
        if not self._events.intervention.pending:
            return result
        try:
            with self._work.unseen():
                return self._events.intervention.apply(result, multi_head)
        except Exception as error:
            self._fail(error)
            return result

    def _harmless(self, function: Callable[..., None]) -> Callable[..., None]:
        """Wrap ``function`` so that its errors do not reach the running model."""

        def guarded(*args: Any) -> None:
            try:
                function(*args)
            except (LeftOutError, UnknownAxesError, PackedCallError) as error:
                self._events.leave_out(str(error))
            except Exception as error:
                self._fail(error)

        return guarded
