"""What observing switches for the whole process, while an observed model runs and no longer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_geo.observe.attention.flex import observe_flex
from lightning_geo.observe.attention.routed import observe_routed
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.replay.torch_compile import as_compiled
from lightning_geo.utils._torch import innermost_function_mode

__all__ = ["INTERCEPTION", "Listener"]

#: Results of functions that only look at a tensor.
_PLAIN = frozenset({bool, int, float, str, torch.Size, torch.dtype, torch.device, torch.layout})


class Listener(Protocol):
    """A tap, as seen from here. Neither method raises; both return what the model is to get."""

    busy: bool

    def routed(self, module: nn.Module | None, translate: Callable[[], AttentionCall], result: Any) -> Any:
        """Transformers ran an attention function for ``module``, or the running one called flex_attention."""

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """A torch function returned."""


class Interception:
    """On from the first listener to the last, in whatever order they come and go.

    Two monitors observe the same step, and neither may take the other's patch for the original.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._on = contextlib.ExitStack()
        self._mode = _Functions(self._function)

    def connect(self, listener: Listener) -> None:
        """Tell ``listener`` what happens."""
        if not self._listeners:
            with contextlib.ExitStack() as stack:
                stack.enter_context(_without_fast_path())
                stack.enter_context(observe_routed(self._routed, self._unseen))
                stack.enter_context(observe_flex(self._flex, self._unwatched))
                stack.enter_context(self._mode)
                self._on = stack.pop_all()
        self._listeners.append(listener)

    def disconnect(self, listener: Listener) -> None:
        """Tell it no more; harmless when done twice."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            if not self._listeners:
                self._on.close()

    def _routed(self, module: nn.Module, translate: Callable[[], AttentionCall], result: Any) -> Any:
        for listener in self._listeners:
            result = listener.routed(module, translate, result)
        return result

    def _flex(self, translate: Callable[[], AttentionCall], result: Any) -> Any:
        for listener in self._listeners:
            if not listener.busy:  # else part of a call that was seen: transformers' own
                result = listener.routed(None, translate, result)
        return result

    def _function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        for listener in self._listeners:
            result = listener.function(func, args, kwargs, result)
        return result

    @contextlib.contextmanager
    def _unseen(self) -> Iterator[None]:
        """Run a routed function: what it calls inside belongs to the call already seen."""
        before = [(listener, listener.busy) for listener in self._listeners]
        for listener, _ in before:
            listener.busy = True
        try:
            with self._unwatched(), as_compiled():
                yield
        finally:
            for listener, busy in before:
                listener.busy = busy

    @contextlib.contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Without our mode: flex attention compiles what it runs, which the mode would disturb."""
        ours = innermost_function_mode() is self._mode
        if ours:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            if ours:
                self._mode.__enter__()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """The fused encoder layer of inference shows nothing of its attention."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _Functions(TorchFunctionMode):
    """Show ``see`` the torch functions that a model is made of, after they have run."""

    def __init__(self, see: Callable[..., Any]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if torch.compiler.is_compiling():  # traced, it would become part of somebody's compiled code
            return result
        if type(result) in _PLAIN or (result is None and func is not Tensor.__setitem__):
            return result
        return self._see(func, args, kwargs, result)


#: The process's.
INTERCEPTION = Interception()
