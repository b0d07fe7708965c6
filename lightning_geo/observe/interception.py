"""Process-wide patches for observing, in place only while an observed model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_geo.observe.attention.flex import observe_flex
from lightning_geo.observe.attention.routed_attention import observe_routed
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.replay.torch_compile import as_compiled
from lightning_geo.utils._torch import innermost_function_mode

__all__ = ["INTERCEPTION", "ConnectedTap", "Interception"]

#: Result types of functions that only inspect a tensor.
_PLAIN = frozenset({bool, int, float, str, torch.Size, torch.dtype, torch.device, torch.layout})


class ConnectedTap(Protocol):
    """A tap that receives function calls. Neither method raises; both return the result for the model."""

    busy: bool

    def routed(self, module: nn.Module | None, translate: Callable[[], AttentionCall], result: Any) -> Any:
        """Take a call of transformers' attention function for ``module``, or of flex_attention (``None``)."""

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Take a torch function that returned."""


class Interception:
    """Patches once for all connected taps: from the first connect to the last disconnect, in any order.

    Two monitors may observe the same step. If each patched by itself, the second would save the first one's
    patch as the original, and restore it after the first is gone.
    """

    def __init__(self) -> None:
        self._taps: list[ConnectedTap] = []
        #: those that receive calls now
        self._watching: list[ConnectedTap] = []
        self._mode_on = False
        self._on = contextlib.ExitStack()
        self._mode = _Functions(self._function)

    def connect(self, tap: ConnectedTap) -> None:
        """Pass function calls to ``tap`` from now on."""
        if not self._taps:
            with contextlib.ExitStack() as stack:
                stack.enter_context(_without_fast_path())
                stack.enter_context(observe_routed(self._routed, self._unseen))
                stack.enter_context(observe_flex(self._flex, self._unwatched))
                self._on = stack.pop_all()
        self._taps.append(tap)
        self.watch(tap)

    def watch(self, tap: ConnectedTap) -> None:
        """Pass function calls to a connected tap again."""
        self._watching.append(tap)
        if not self._mode_on:
            self._mode_on = True
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def unwatch(self, tap: ConnectedTap) -> None:
        """Pass no function calls to a tap that stays connected; a second call does nothing."""
        if tap in self._watching:
            self._watching.remove(tap)
            # torch leaves the mode that was entered last: where that is another, ours stays on, idle
            if not self._watching and innermost_function_mode() is self._mode:
                self._leave_mode()

    def _leave_mode(self) -> None:
        if self._mode_on:
            self._mode_on = False
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def disconnect(self, tap: ConnectedTap) -> None:
        """Stop passing calls to ``tap``; a second call does nothing."""
        if tap in self._taps:
            self.unwatch(tap)
            self._taps.remove(tap)
            if not self._taps:
                self._leave_mode()
                self._on.close()

    def _routed(self, module: nn.Module, translate: Callable[[], AttentionCall], result: Any) -> Any:
        for tap in self._watching:
            result = tap.routed(module, translate, result)
        return result

    def _flex(self, translate: Callable[[], AttentionCall], result: Any) -> Any:
        for tap in self._watching:
            if not tap.busy:  # a busy tap received this call from transformers already
                result = tap.routed(None, translate, result)
        return result

    def _function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        for tap in self._watching:
            result = tap.function(func, args, kwargs, result)
        return result

    @contextlib.contextmanager
    def _unseen(self) -> Iterator[None]:
        """Run a routed function while taps ignore the functions inside: they belong to the routed call."""
        before = [(tap, tap.busy) for tap in self._taps]
        for tap, _ in before:
            tap.busy = True
        try:
            with self._unwatched(), as_compiled():
                yield
        finally:
            for tap, busy in before:
                tap.busy = busy

    @contextlib.contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Leave our function mode: flex attention compiles code, and the compiler would trace the mode."""
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
    """Turn off the fused encoder layer of inference, which hides its attention."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _Functions(TorchFunctionMode):
    """Calls ``see`` with each torch function after it ran, and returns the result of ``see``."""

    def __init__(self, see: Callable[..., Any]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if torch.compiler.is_compiling():  # keep ``see`` out of the user's graph
            return result
        if type(result) in _PLAIN or (result is None and func is not Tensor.__setitem__):
            return result
        return self._see(func, args, kwargs, result)


#: The one interception of this process.
INTERCEPTION = Interception()
