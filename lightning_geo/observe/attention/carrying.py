"""Follow the axes, columns and products of scores through the functions that models apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.attention.products import Product
from lightning_geo.observe.attention.terms import Term

__all__ = ["added_term", "axes_after", "begins_at_front", "joined_products", "joined_rows", "keys_before"]

_SWAPS: frozenset[Any] = frozenset({
    torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes, torch.swapdims, Tensor.swapdims,
})  # fmt: skip
_PERMUTATIONS: frozenset[Any] = frozenset({torch.permute, Tensor.permute})
_MATRIX_SWAPS: frozenset[Any] = frozenset({
    Tensor.mT.__get__, Tensor.T.__get__, Tensor.t, torch.t,  # type: ignore[attr-defined]
})  # fmt: skip


def keys_before(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor, columns: int
) -> int | None:
    """Count the key columns of scores that were concatenated with columns without a product."""
    if func not in (torch.cat, torch.concat):
        return None
    parts = args[0] if args else kwargs["tensors"]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if parts[0] is not x or _negative(dim, x) != columns:
        return None
    return int(x.shape[columns])


def joined_rows(parts: tuple[Product, ...], lead: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the queries, and the keys of all parts concatenated."""
    keys = [part.rows[1] for part in parts]
    return parts[0].rows[0], torch.cat([key.expand(*lead, *key.shape[-2:]) for key in keys], dim=-2)


def joined_products(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: Sequence[tuple[Tensor, Product | None]],
    columns: int,
) -> tuple[Product, ...]:
    """Return concatenated products in order; none if one is unknown or has other queries."""
    if func not in (torch.cat, torch.concat) or len(known) < 2:
        return ()
    parts = args[0] if args else kwargs["tensors"]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if _negative(dim, known[0][0]) != columns:
        return ()
    products = [next((product for x, product in known if x is part), None) for part in parts]
    known_products = tuple(product for product in products if product is not None)
    same = all(product.factors[0] is known_products[0].factors[0] for product in known_products)
    return known_products if len(known_products) == len(products) and same else ()


def begins_at_front(func: Any, args: tuple[Any, ...], columns: int) -> bool:
    """Whether a function call is ``p[..., :n]``."""
    if func is not Tensor.__getitem__ or columns != -1:
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    last = index[-1]
    return isinstance(last, slice) and last.start in (None, 0) and last.step in (None, 1)


def axes_after(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor, y: Tensor, axes: tuple[int, int]
) -> tuple[int, int] | None:
    """Return the positions in a function's result of two axes (negative) of an argument; None if lost.

    Args:
        func: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        x: The argument.
        y: The result.
        axes: The axes in ``x``.
    """
    options = [*args[1:], *kwargs.values()]
    if func in _SWAPS or func in _MATRIX_SWAPS:
        one, two = options if func in _SWAPS else (-1, -2)
        swapped = {_negative(one, x): _negative(two, x), _negative(two, x): _negative(one, x)}
        return swapped.get(axes[0], axes[0]), swapped.get(axes[1], axes[1])
    if func in _PERMUTATIONS:
        order = options[0] if isinstance(options[0], (tuple, list)) else options
        places = {_negative(old, x): new - x.dim() for new, old in enumerate(order)}
        return places[axes[0]], places[axes[1]]
    if y.dim() == x.dim():
        # The layout is the same, possibly with fewer sequences, heads or keys.
        changed = [i - x.dim() for i in range(x.dim()) if x.shape[i] != y.shape[i]]
        return axes if set(changed) <= {*axes} or x.numel() != y.numel() else None
    if set(axes) == {-2, -1} and y.dim() >= 2 and y.shape[-2:] == x.shape[-2:]:
        return axes  # leading axes joined, split, added or indexed
    return None


def _negative(axis: int, x: Tensor) -> int:
    return axis - x.dim() if axis >= 0 else axis


def added_term(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> tuple[Term, ...]:
    """Return the first argument of ``baddbmm``, which is added to the product, as a term."""
    if "baddbmm" not in getattr(func, "__name__", ""):
        return ()
    added = args[0] if args else kwargs["input"]
    return (Term(added, result.shape, (-2, -1)),) if 0 < added.dim() <= result.dim() else ()
