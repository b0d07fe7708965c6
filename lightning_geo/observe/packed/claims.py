"""Arguments of running modules that may describe documents, and the documents they describe."""

from __future__ import annotations

import functools
import inspect
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from lightning_geo.observe.spans import (
    Array,
    Spans,
    from_cumulative,
    from_numbers,
    from_positions,
    is_packed,
)

__all__ = ["Evidence", "claimed_documents", "evidence_in", "flash_documents", "kind_of"]

#: Names of arguments by kind of evidence; only integers and bools count.
_NAMES = {
    "cumulative": r"cu_?(seq_?)?(lens?|lengths|q|k)?(_q|_k|_kv)?",
    "mask": r"(attention_?|attn_?|padding_?|pad_?|key_padding_?)?mask",
    "numbers": r"(doc(ument)?s?|seq(uence)?|segments?|samples?)(_?(ids?|idx|index|indices|mask|numbers?))?",
    "positions": r"(position|pos)s?(_?(ids?|idx))?|input_pos",
}

_Kind = str


class Evidence(NamedTuple):
    """One argument of a running module that may describe documents."""

    kind: _Kind
    tensor: Tensor


@functools.lru_cache(maxsize=1024)
def kind_of(name: str) -> _Kind | None:
    """Return an argument's kind of evidence by its name; ``None`` if it is none.

    Example:
        >>> kind_of("cu_seq_lens_q"), kind_of("position_ids"), kind_of("input_ids")
        ('cumulative', 'positions', None)
    """
    kinds = (kind for kind, pattern in _NAMES.items() if re.fullmatch(pattern, name, re.IGNORECASE))
    return next(kinds, None)


def evidence_in(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Evidence, ...]:
    """Return a module's arguments that may describe documents, including entries of dict arguments."""
    named: list[tuple[str, Any]] = list(kwargs.items())
    if any(_may_describe(value) for value in args):
        named += zip(_parameters(type(module).forward), args, strict=False)
    for value in (*args, *kwargs.values()):
        if isinstance(value, Mapping):
            named += [(str(name), item) for name, item in value.items()]
    kinds = ((kind_of(name), value) for name, value in named if _may_describe(value))
    return tuple(Evidence(kind, value) for kind, value in kinds if kind is not None)


def _may_describe(value: Any) -> bool:
    whole = isinstance(value, Tensor) and not value.is_floating_point() and 0 < value.dim() < 4
    return whole and value.device.type != "meta"


#: Parameters by function. Weak: one that is defined in another may hold a model.
_PARAMETERS: weakref.WeakKeyDictionary[Any, tuple[str, ...]] = weakref.WeakKeyDictionary()


def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    names = _PARAMETERS.get(forward)
    if names is None:
        names = _PARAMETERS[forward] = _read_parameters(forward)
    return names


def _read_parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(forward).parameters)[1:]
    except (TypeError, ValueError):
        return ()


def flash_documents(
    options: Mapping[str, Any], batch: int, mask: Any
) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
    """Return the arguments from which transformers' flash attention makes its documents.

    Args:
        options: Keyword arguments of the attention function.
        batch: Rows.
        mask: Its attention mask; with one, transformers unpads the rows and ignores the other arguments.

    Returns:
        Cumulative lengths of queries and keys, or position ids; at most one of them is not ``None``.
    """
    lengths = [options.get(name) for name in ("cu_seq_lens_q", "cu_seq_lens_k")]
    longest = [options.get(name) for name in ("max_length_q", "max_length_k")]
    positions = options.get("position_ids")
    if mask is not None:
        return None, None
    if all(isinstance(x, Tensor) for x in lengths) and all(x is not None for x in longest):
        return (lengths[0], lengths[1]), None  # type: ignore[return-value]
    if isinstance(positions, Tensor) and batch == 1 and positions.dim() == 2 and positions.shape[-1] > 1:
        return None, positions
    return None, None


def claimed_documents(evidence: Iterable[tuple[_Kind, Array]], batch: int, length: int) -> Iterator[Spans]:
    """Yield the documents that arguments describe in ``[batch, length]`` rows, the strongest kind first.

    Args:
        evidence: Kinds and values; values for rows of other sizes are skipped.
        batch: Rows.
        length: Tokens of each.

    Yields:
        Spans if some row holds several documents; none is empty or crosses the end of its row.
    """
    of_kind: dict[_Kind, list[tuple[Array, int]]] = {}
    for kind, array in evidence:
        if kind == "cumulative":
            of_kind.setdefault(kind, []).append((array, 1))
        elif _covers(kind, array.shape, batch, length):
            planes = array.shape[0] if array.ndim == 3 else 1
            plane = np.broadcast_to(array[0] if array.ndim == 3 else array, (batch, length))
            of_kind.setdefault(kind, []).append((plane, planes))
    masks = [array for array, _ in of_kind.get("mask", ())]
    real = next((mask != 0 for mask in masks), None)
    claims: list[Spans | None] = []
    claims += [from_cumulative(array, batch * length) for array, _ in of_kind.get("cumulative", ())]
    claims += [from_numbers(mask, is_mask=True) for mask in masks]
    claims += [from_numbers(array, is_mask=False) for array, _ in of_kind.get("numbers", ())]
    claims += [from_positions(array, real, planes=n) for array, n in of_kind.get("positions", ())]
    for spans in claims:
        filled = [] if spans is None else [span for span in spans if span[1] > span[0]]
        inside = all(start // length == (stop - 1) // length for start, stop in filled)
        if inside and is_packed(filled, length):
            yield filled


def _covers(kind: _Kind, shape: tuple[int, ...], batch: int, length: int) -> bool:
    """Whether an argument has an entry for every token of the rows."""
    if kind == "positions":
        return shape[-2:] in ((batch, length), (1, length)) or shape == (length,)
    return shape == (batch, length) or (batch == 1 and shape == (length,))
