"""Private names of ``flex_attention``."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch

__all__ = [
    "flex_calls",
    "flex_masks_nothing",
    "flex_operator_replaced",
    "flex_output",
    "flex_scores_unchanged",
    "table_lookups",
]

_FLEX = "torch.nn.attention.flex_attention"
#: The context, by its name in that module, in which ``flex_attention`` computes: in torch 2.13, and before.
_FLEX_CONTEXTS = ("setup_compilation_env", "_set_compilation_env")


@contextlib.contextmanager
def flex_calls(
    around: Callable[[AbstractContextManager[Any], FrameType], AbstractContextManager[Any]],
) -> Iterator[None]:
    """Put a context of one's own around what every call of ``flex_attention`` computes.

    A model that imported the function by name keeps the original whatever is assigned in torch's module. The
    original looks up the context in which it computes there, and that is replaced: it opens once arguments
    were checked, and closes once the output is known.

    Relies on ``setup_compilation_env``, before torch 2.13 ``_set_compilation_env``, in
    ``torch.nn.attention.flex_attention``; checked on torch 2.13.0. Without it no call is seen.

    Args:
        around: Given torch's own context and the frame of the function, returns what is entered instead.
    """
    library = sys.modules.get(_FLEX)
    function = getattr(library, "flex_attention", None)
    name = next((name for name in _FLEX_CONTEXTS if hasattr(library, name)), "")
    original = getattr(library, name, None)
    code = getattr(function, "__code__", None)
    if library is None or original is None or code is None:
        yield
        return

    def computing(*args: Any, **kwargs: Any) -> Any:
        context, frame = original(*args, **kwargs), sys._getframe(1)
        if frame.f_code is not code or torch.compiler.is_compiling():
            return context
        return around(context, frame)

    setattr(library, name, computing)
    try:
        yield
    finally:
        setattr(library, name, original)


def flex_output(frame: FrameType) -> Any:
    """Return the result of ``flex_attention`` in its frame; ``None`` before there is one.

    Relies on its local variable ``out``; checked on torch 2.13.0.
    """
    return frame.f_locals.get("out")


@contextlib.contextmanager
def flex_operator_replaced(replace: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Let ``flex_attention`` compute with another function than its operator.

    Relies on ``flex_attention_hop`` in ``torch.nn.attention.flex_attention``; checked on torch 2.13.0.

    Args:
        replace: Given the operator, returns what is called instead.
    """
    library: Any = sys.modules[_FLEX]
    original = library.flex_attention_hop
    library.flex_attention_hop = replace(original)
    try:
        yield
    finally:
        library.flex_attention_hop = original


def flex_scores_unchanged(score_mod: Any) -> bool:
    """Whether it is what ``flex_attention`` takes where no ``score_mod`` was given.

    Relies on ``_identity`` in ``torch.nn.attention.flex_attention``; checked on torch 2.13.0.
    """
    return score_mod is getattr(sys.modules[_FLEX], "_identity", None)


def flex_masks_nothing(mask: Any) -> bool:
    """Whether it is what ``flex_attention`` takes where no ``block_mask`` was given.

    Relies on ``_LARGE_SPARSE_BLOCK_SIZE`` in ``torch.nn.attention.flex_attention``; checked on torch 2.13.0.
    """
    library: Any = sys.modules[_FLEX]
    one_block = mask.BLOCK_SIZE[0] == getattr(library, "_LARGE_SPARSE_BLOCK_SIZE", 1 << 30)
    return one_block and mask.mask_mod is library.noop_mask


@contextlib.contextmanager
def table_lookups() -> Iterator[None]:
    """The context in which a rule of flex attention may look up tables under ``torch.vmap``.

    ``vmap`` of torch 2.6 refuses ``table[index]`` of a scalar index. Relies on ``TransformGetItemToIndex``,
    in which ``create_block_mask`` calls such rules, and on ``_EnableTorchFunction``: it is a function mode,
    and observers switch those off around their own work. Later ones need no context; checked on torch 2.6.0.
    """
    if _vmap_indexes():
        yield
        return
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    with torch._C._EnableTorchFunction(), TransformGetItemToIndex():
        yield


@functools.cache
def _vmap_indexes() -> bool:
    table = torch.arange(2)
    try:
        torch.vmap(lambda index: table[index])(table)
    except RuntimeError:
        return False
    return True
