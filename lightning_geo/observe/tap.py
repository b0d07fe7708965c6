"""The tap: observes one model's attention calls while it is open, and leaves nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from lightning_geo.observe.attention_events import AttentionEvents
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.coverage import Coverage, LeftOutError
from lightning_geo.observe.evidence.axes import UnknownAxesError
from lightning_geo.observe.heads.projection_search import ProjectionObserver
from lightning_geo.observe.interception import INTERCEPTION
from lightning_geo.observe.layers.module_stack import ModuleStack, ModuleTree
from lightning_geo.observe.layers.numbering import name_of
from lightning_geo.observe.module_events import ModuleEvents
from lightning_geo.observe.observer import Observer
from lightning_geo.observe.own_work import OwnWork
from lightning_geo.observe.packed.documents import PackedCallError
from lightning_geo.observe.replay.call_hooks import Fleeting
from lightning_geo.observe.replay.torchscript import is_scripted
from lightning_geo.observe.replay.undisturbed import replay_depth
from lightning_geo.observe.training_calls import begins_training
from lightning_geo.utils._lightning import borrows_forward
from lightning_geo.utils._torch import without_function_modes
from lightning_geo.utils.device_time import Stopwatch
from lightning_geo.utils.errors import let_go

__all__ = ["SCRIPTED", "Observer", "Tap"]

#: Why a scripted module's attention gives no numbers.
SCRIPTED = (
    "its module is TorchScript, which shows nothing of its inside; observe it before `torch.jit.script`"
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
        #: whether the model itself was called, rather than modules in it
        self.called = False
        self._work = OwnWork(model)
        #: calls that were no part of training, and counted for nothing
        self.passed_over = 0
        self._training = False
        #: the module whose call does not count, once for each of its calls that are running
        self._passing: list[nn.Module] = []
        #: the depth of replays that is observed: one's own, not another monitor's in between
        self._depth = 0
        self._stack = ModuleStack(ModuleTree(model))
        self._events = AttentionEvents(
            self._stack,
            self._work,
            special_token_ids,
            imply=lambda name: self._modules.imply(name),
            name_of=lambda path: self.name_of(path),
        )
        self._modules = ModuleEvents(self._stack, self._events)

    @property
    def busy(self) -> bool:
        """Whether what runs is no part of the model, or part of a call that was already seen."""
        return self._work.busy

    @busy.setter
    def busy(self, busy: bool) -> None:
        self._work.busy = busy

    @property
    def coverage(self) -> Coverage:
        """What was seen since the sample began, and what of it was measured."""
        return self._events.coverage

    @property
    def seconds(self) -> float:
        """What observing has cost since the sample began."""
        return self._work.stopwatch.seconds

    def begin_sample(self) -> None:
        """Count, time and note failures anew."""
        self.failures.clear()
        self.unobserved.clear()
        self.passed_over = 0
        self._work.stopwatch = Stopwatch()
        self._events.coverage = Coverage()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The model's modules by cleaned path."""
        return self._stack.tree.modules

    @property
    def takes_ids(self) -> bool:
        """Whether any module takes token ids."""
        return self._modules.takes_ids

    @property
    def unobserved(self) -> dict[str, str]:
        """Modules that look like attention and ran without showing any: path -> class name."""
        return self._modules.unobserved

    @property
    def scripted(self) -> list[str]:
        """Paths of TorchScript modules that compute attention."""
        return self._stack.tree.scripted

    def name_of(self, path: str, prefix: str = "") -> str:
        """Name one of the model's modules for a person; see :func:`.name_of`."""
        return name_of(path, self._model, prefix)

    @property
    def unprojected(self) -> dict[str, list[str]]:
        """Attention modules and the roles whose projections could not be found."""
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
        """Show ``observer`` what happens until the context ends.

        Args:
            observer: What is shown.
            training: Whether calls count only where they are part of training.
            replays: Whether replays that begin inside are shown, rather than what runs between them.
            twin: A copy of the model that runs in its place.
        """
        self._events.observer, self._depth, self._training = observer, replay_depth() + replays, training
        wanted = getattr(observer, "reads_projections", False)
        self._events.search.observer = cast(ProjectionObserver, observer) if wanted else None
        if not self._stack.tree.is_of(self._model):
            self._stack.tree = ModuleTree(self._model)
            self._events.search.forget()
        model, tree = self._model, self._stack.tree
        leave = self._harmless(self._leave)
        handles = []
        try:
            if twin is not None and twin is not model:
                self._model, self._stack.tree = twin, tree.of(twin)
                self._events.search.forget()
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
                self._events.search.forget()

    def _start_over(self) -> None:
        """Be as before the model ran."""
        INTERCEPTION.disconnect(self)
        self._forget()

    def _forget(self) -> None:
        """Drop every reference to the model's activations."""
        self._stack.clear()
        self._passing.clear()
        self._events.clear()

    def _fail(self, error: Exception) -> None:
        """Keep what went wrong, without the activations that its frames hold, and look at nothing more."""
        self.failures.append(let_go(error))
        running = [frame.module for frame in self._stack.frames[:1]]
        if not running:
            INTERCEPTION.disconnect(self)
        self._forget()
        # the switches stay on until the outermost module ends: others may be on top of them by now
        self._passing = running

    # -- modules start and end

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._work.busy or self._depth != replay_depth() or self._passes_over(module):
                return
            with without_function_modes():  # looking at tensors is no event for the mode
                self._begin(name, module, args, kwargs)

        return hook

    def _begin(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not name:
            self._start_over()
            self.called = True
        if not self._stack.frames:
            INTERCEPTION.connect(self)
            self._leave_out_scripted(name)
        self._modules.start(name, module, args, kwargs, self._model.buffers())

    def _passes_over(self, module: nn.Module) -> bool:
        """Whether a module starts in a call that does not count, or borrowed its call for a whole step."""
        if self._passing:
            if module is self._passing[0]:
                self._passing.append(module)
            return True
        if self.failures:
            return True  # the sample is lost: what else it sees would cost time and memory for nothing
        if module is self._model and borrows_forward(module):
            return True  # Lightning's whole step: what it calls inside counts
        if self._stack.frames or not self._training or begins_training():
            return False
        self._passing.append(module)
        self.passed_over += 1
        return True

    def _leave(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if self._passing and not self._work.busy and self._depth == replay_depth():
            if module is self._passing[0]:
                self._passing.pop()
                if self.failures and not self._passing:
                    INTERCEPTION.disconnect(self)
            return
        if self._work.busy or self._depth != replay_depth() or not self._stack.runs(module):
            return
        with without_function_modes():
            while self._stack.frames[-1].module is not module:
                self._modules.end()
            self._modules.end(result)
            if not self._stack.frames:
                INTERCEPTION.disconnect(self)

    # -- attention happens

    def routed(self, module: nn.Module | None, translate: Callable[[], AttentionCall], result: Any) -> Any:
        """Transformers ran an attention function for ``module``, or the running one called flex_attention."""
        self._harmless(self._events.routed)(module, translate, result)
        return self._intervened(result)

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """A torch function returned."""
        if self._work.busy or not self._stack.frames:
            return result
        started = self._work.stopwatch.start()
        try:
            with torch.no_grad():
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
        """What the model gets: the result itself, unless the observer asked for another."""
        if not self._events.intervention.pending:
            return result
        try:
            with self._work.unseen():
                return self._events.intervention.apply(result, multi_head)
        except Exception as error:
            self._fail(error)
            return result

    def _leave_out_scripted(self, root: str) -> None:
        """The attention of TorchScript modules inside one that starts: nothing tells whether it runs."""
        for name in self.scripted:
            if name.startswith(f"{root}." if root else ""):
                self._events.leave_out(SCRIPTED, name)

    # -- contexts

    def _harmless(self, function: Callable[..., None]) -> Callable[..., None]:
        """Keep what goes wrong in ``function`` from the model that is running."""

        def guarded(*args: Any) -> None:
            try:
                function(*args)
            except (LeftOutError, UnknownAxesError, PackedCallError) as error:
                self._events.leave_out(str(error))
            except Exception as error:
                self._fail(error)

        return guarded
