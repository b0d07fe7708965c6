"""``flex_attention`` called directly: observed from inside the function, since models hold it by name."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.attention.fused_flex import fused_flex, with_blocks
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.coverage import LeftOutError
from lightning_geo.observe.replay.torch_compile import eagerly
from lightning_geo.observe.replay.undisturbed import replay_depth

__all__ = ["observe_flex"]

_LIBRARY = "torch.nn.attention.flex_attention"
#: The context, by its name in that module, in which ``flex_attention`` computes: in torch 2.13, and before.
_CONTEXTS = ("setup_compilation_env", "_set_compilation_env")
_COMPILER = os.path.join("torch", "_dynamo", "eval_frame.py")

Observe = Callable[[Callable[[], AttentionCall], Any], Any]


@contextmanager
def observe_flex(observe: Observe, unwatched: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Hand every call of ``flex_attention`` to ``observe`` while the context is open.

    A model that imported the function by name keeps the original whatever is assigned in torch's module. The
    original looks up the context in which it computes there, and that is replaced: it opens once arguments
    were checked, and closes once the output is known.

    Args:
        observe: Takes a function that translates the call, and the output; returns the output for the model.
            Only replays, in which everything runs eagerly, use the returned output.
        unwatched: Context without our torch function mode, which the compiler would trace.
    """
    library = sys.modules.get(_LIBRARY)
    function = getattr(library, "flex_attention", None)
    name = next((name for name in _CONTEXTS if hasattr(library, name)), "")
    original = getattr(library, name, None)
    code = getattr(function, "__code__", None)
    if library is None or original is None or code is None:
        yield
        return

    def computing(*args: Any, **kwargs: Any) -> Any:
        context, frame = original(*args, **kwargs), sys._getframe(1)
        if frame.f_code is not code or torch.compiler.is_compiling():
            return context
        return _observed(context, _Call(library, frame), observe, unwatched)

    setattr(library, name, computing)
    try:
        yield
    finally:
        setattr(library, name, original)


@contextmanager
def _observed(
    context: AbstractContextManager[Any],
    call: _Call,
    observe: Observe,
    unwatched: Callable[[], AbstractContextManager[None]],
) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(unwatched())
        replaying = replay_depth() > 0
        if replaying:
            stack.enter_context(eagerly())
            stack.enter_context(call.replaced(observe))
        yield stack.enter_context(context)
    if not replaying:
        output = call.frame.f_locals.get("out")
        observe(lambda: call.translate(output), output)


class _Call:
    """One call of ``flex_attention`` that is running.

    Args:
        library: Torch's module.
        frame: The function's.
    """

    def __init__(self, library: ModuleType, frame: FrameType) -> None:
        self._library = library
        self.frame = frame
        self._given = dict(frame.f_locals)
        self._compiled = _is_compiled(frame)

    @contextmanager
    def replaced(self, observe: Observe) -> Iterator[None]:
        """Let the function compute through us, so that the model can be given another output."""
        library: Any = self._library
        original = library.flex_attention_hop

        def compute(*args: Any, **kwargs: Any) -> Any:
            if self._compiled:
                result = fused_flex(library.flex_attention, self._given)
                result = original(*with_blocks(args, self._given), **kwargs) if result is None else result
            else:
                result = original(*args, **kwargs)
            return observe(lambda: self.translate(result[0]), result[0]), *result[1:]

        library.flex_attention_hop = compute
        try:
            yield
        finally:
            library.flex_attention_hop = original

    def translate(self, output: Tensor | None) -> AttentionCall:
        """Translate the call.

        Raises:
            LeftOutError: If a ``score_mod`` changes the scores.
        """
        given = self._given
        if given["score_mod"] is not getattr(self._library, "_identity", None):
            raise LeftOutError(
                "its flex_attention has a `score_mod`, whose changes to the scores cannot be evaluated"
            )
        query, key, value = given["query"], given["key"], given["value"]
        if len(key) != len(query):  # all sequences share one sequence of keys
            key, value = (x.expand(len(query), -1, -1, -1) for x in (key, value))
        mask = given["block_mask"]
        empty = mask.BLOCK_SIZE[0] == getattr(self._library, "_LARGE_SPARSE_BLOCK_SIZE", 1 << 30)
        masks = () if empty and mask.mask_mod is self._library.noop_mask else (self._mask(mask),)
        return AttentionCall(query, key, value, output, masks=masks, scale=given["scale"])

    def _mask(self, mask: Any) -> Any:
        """Return the mask as it was applied: eager code skips no blocks, only ``mask_mod`` hides keys."""
        if self._compiled:
            return mask
        one = torch.ones(mask.kv_num_blocks.shape[:-1], dtype=torch.int32, device=mask.kv_num_blocks.device)
        return self._library.BlockMask.from_kv_blocks(
            one[..., None],
            torch.zeros_like(one)[..., None, None],
            BLOCK_SIZE=1 << 30,
            mask_mod=mask.mask_mod,
            seq_lengths=mask.seq_lengths,
        )


def _is_compiled(frame: FrameType | None) -> bool:
    """Whether the model compiles this call, so that it runs eagerly for us alone."""
    while frame is not None:
        if frame.f_code.co_filename.endswith(_COMPILER):
            return True
        frame = frame.f_back
    return False
