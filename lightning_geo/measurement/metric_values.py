"""Calls of metric functions; those of others get copies, and cannot cost more than their own metric."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_geo.functional import HeadWeights
from lightning_geo.metrics.registry import metric_function, reads_of
from lightning_geo.observe.replay.undisturbed_run import RandomState
from lightning_geo.utils.errors import ArgumentError, ArgumentTypeError, let_go

__all__ = ["foreign_value", "value", "without_trace"]


def value(name: str, quantities: Mapping[str, Any], *parts: str) -> Tensor:
    """Return what a metric's function makes of quantities, of which those that it reads are taken."""
    result: Tensor = metric_function(name)(*(quantities[quantity] for quantity in reads_of(name)), *parts)
    return result


def foreign_value(
    name: str,
    quantities: Mapping[str, Any],
    shape: Sequence[int],
    parts: Sequence[str],
    failures: dict[str, Exception],
) -> Tensor:
    """Return what the function of a foreign metric makes of copies of quantities.

    What it writes to, draws or raises is its own: the sums of other metrics and the training are as without
    it. Where it fails, the result is NaN and the error is noted.

    Args:
        name: Stored name.
        quantities: By name.
        shape: That the result must have.
        parts: The part that the function is called with, if any.
        failures: First error of each metric, by name; one may be added.
    """
    read = [quantities[quantity] for quantity in reads_of(name)]
    like = next(tensor for quantity in read for tensor in _tensors(quantity))
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    try:
        with without_trace(like.device):
            result = metric_function(name)(*map(_copied, read), *parts)
        return _checked(name, result, shape, like.device).to(dtype)
    except Exception as error:
        failures.setdefault(name.partition(".")[0], let_go(error))
        return torch.full(tuple(shape), torch.nan, dtype=dtype, device=like.device)


@contextlib.contextmanager
def without_trace(device: torch.device) -> Iterator[None]:
    """Run others' code without gradient, and leave the random generators as they were."""
    before = RandomState.now(device)
    try:
        with torch.no_grad():
            yield
    finally:
        before.restore(device)


def _checked(name: str, result: object, shape: Sequence[int], device: torch.device) -> Tensor:
    if not isinstance(result, Tensor):
        raise ArgumentTypeError(f"Expected {name!r} to return a tensor but got {type(result).__name__}.")
    if not result.is_floating_point():
        raise ArgumentTypeError(
            f"Expected {name!r} to return a tensor of floating point but got {result.dtype}."
        )
    if tuple(result.shape) != tuple(shape):
        raise ArgumentError(
            f"Expected {name!r} to return a tensor of shape {list(shape)} but got {list(result.shape)}."
        )
    if result.device != device:
        raise ArgumentError(
            f"Expected {name!r} to return a tensor on {device} but got one on {result.device}."
        )
    return result.detach()


def _copied(quantity: Any) -> Any:
    """A quantity that shares no memory with what it was made of."""
    if isinstance(quantity, Tensor):
        return quantity.clone()
    if isinstance(quantity, HeadWeights):
        weights = {role: weight.clone() for role, weight in quantity.roles.items()}
        start = None if quantity.start is None else {r: w.clone() for r, w in quantity.start.items()}
        return HeadWeights(**weights, heads=quantity.heads, start=start)
    if isinstance(quantity, tuple):
        return tuple(map(_copied, quantity))
    if is_dataclass(quantity) and not isinstance(quantity, type):
        return replace(quantity, **{f.name: _copied(getattr(quantity, f.name)) for f in fields(quantity)})
    return quantity


def _tensors(quantity: Any) -> Iterator[Tensor]:
    if isinstance(quantity, Tensor):
        yield quantity
    elif isinstance(quantity, HeadWeights):
        yield from quantity.roles.values()
    elif is_dataclass(quantity):
        for field in fields(quantity):
            yield from _tensors(getattr(quantity, field.name))
