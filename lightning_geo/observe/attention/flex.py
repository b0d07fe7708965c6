"""``flex_attention`` called directly: observed from inside the function, since models hold it by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as library

from lightning_geo.observe.attention.fused_flex import fused_flex, with_blocks
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.coverage import LeftOutError
from lightning_geo.observe.replay.torch_compile import eagerly
from lightning_geo.observe.replay.undisturbed_run import replay_depth
from lightning_geo.utils._torch import (
    flex_calls,
    flex_masks_nothing,
    flex_operator_replaced,
    flex_output,
    flex_scores_unchanged,
    is_compiled_frame,
)

__all__ = ["observe_flex"]

_Observe = Callable[[Callable[[], AttentionCall], Any], Any]


@contextmanager
def observe_flex(observe: _Observe, unwatched: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Hand every call of ``flex_attention`` to ``observe`` while the context is open.

    Args:
        observe: Takes a function that translates the call, and the output; returns the output for the model.
            Only replays, in which everything runs eagerly, use the returned output.
        unwatched: Context without our torch function mode, which the compiler would trace.
    """

    def around(context: AbstractContextManager[Any], frame: FrameType) -> AbstractContextManager[Any]:
        return _observed(context, _Call(frame), observe, unwatched)

    with flex_calls(around):
        yield


@contextmanager
def _observed(
    context: AbstractContextManager[Any],
    call: _Call,
    observe: _Observe,
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
        output = flex_output(call.frame)
        observe(lambda: call.translate(output), output)


class _Call:
    """A running call of ``flex_attention``.

    Args:
        frame: Frame of the function.
    """

    def __init__(self, frame: FrameType) -> None:
        self.frame = frame
        self._given = dict(frame.f_locals)
        self._compiled = is_compiled_frame(frame)

    def replaced(self, observe: _Observe) -> AbstractContextManager[None]:
        """Replace the operator that the function calls, so that the model can receive another output."""

        def replace(original: Callable[..., Any]) -> Callable[..., Any]:
            def compute(*args: Any, **kwargs: Any) -> Any:
                if self._compiled:
                    result = fused_flex(library.flex_attention, self._given)
                    result = original(*with_blocks(args, self._given), **kwargs) if result is None else result
                else:
                    result = original(*args, **kwargs)
                return observe(lambda: self.translate(result[0]), result[0]), *result[1:]

            return compute

        return flex_operator_replaced(replace)

    def translate(self, output: Tensor | None) -> AttentionCall:
        """Translate the call.

        Raises:
            LeftOutError: If a ``score_mod`` changes the scores.
        """
        given = self._given
        if not flex_scores_unchanged(given["score_mod"]):
            raise LeftOutError(
                "its flex_attention has a `score_mod`, whose changes to the scores cannot be evaluated"
            )
        query, key, value = given["query"], given["key"], given["value"]
        if len(key) != len(query):  # all sequences share one sequence of keys
            key, value = (x.expand(len(query), -1, -1, -1) for x in (key, value))
        mask = given["block_mask"]
        masks = () if flex_masks_nothing(mask) else (self._mask(mask),)
        return AttentionCall(query, key, value, output, masks=masks, scale=given["scale"])

    def _mask(self, mask: Any) -> Any:
        """Return the mask as it was applied: eager code skips no blocks, only ``mask_mod`` hides keys."""
        if self._compiled:
            return mask
        one = torch.ones(mask.kv_num_blocks.shape[:-1], dtype=torch.int32, device=mask.kv_num_blocks.device)
        return library.BlockMask.from_kv_blocks(
            one[..., None],
            torch.zeros_like(one)[..., None, None],
            BLOCK_SIZE=1 << 30,
            mask_mod=mask.mask_mod,
            seq_lengths=mask.seq_lengths,
        )
