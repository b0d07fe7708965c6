"""Helpers of the metric functions: argument checks, masking, products at full precision."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.kernels.workspace import constant
from lightning_geo.utils.errors import ArgumentError, ArgumentTypeError
from lightning_geo.utils.shapes import Bool, Float, Shaped

__all__ = [
    "as_float",
    "check_mask",
    "exact_dtype",
    "exact_matmul",
    "masked_mean",
    "shannon_entropy",
]


def as_float(value: Float[Tensor, "*shape"], name: str, axes: str = "") -> Float[Tensor, "*shape"]:
    """Check a floating point tensor against ``axes`` and return it in float32 (float64 stays).

    Args:
        value: The argument.
        name: Its name, for the message.
        axes: Names of the last axes, ``"n d"``; axes of one name have one size.

    Raises:
        TypeError: If ``value`` is no floating point tensor.
        ValueError: If rank or sizes do not fit.
    """
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"Expected `{name}` to be a torch.Tensor but got {type(value).__name__}.")
    if not value.is_floating_point():
        raise ArgumentTypeError(
            f"Expected `{name}` to be a floating point tensor but got {value.dtype}. "
            "Convert it with `.float()`."
        )
    names = axes.split()
    shape = value.shape[max(value.ndim - len(names), 0) :]
    sizes = dict(zip(names, shape, strict=False))
    if len(shape) < len(names) or any(sizes[axis] != size for axis, size in zip(names, shape, strict=True)):
        expected = ", ".join(["...", *names])
        raise ArgumentError(f"Expected `{name}` to have shape [{expected}] but got {list(value.shape)}.")
    # sums in half precision keep three digits; float32 keeps seven
    return value.to(torch.promote_types(value.dtype, torch.float32))


def check_mask(mask: Bool[Tensor, " ..."], shape: torch.Size, name: str = "mask") -> None:
    """Check that ``mask`` is boolean and, axis by axis, of ``shape`` or of size 1.

    Ranks must agree: ``[batch, n]`` against ``[batch, head, n]`` would pair batches with heads
    whenever there are as many of one as of the other.

    Raises:
        TypeError: If ``mask`` is no boolean tensor.
        ValueError: If its shape does not fit.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentTypeError(
            f"Expected `{name}` to be a boolean tensor, True for real tokens, but got {kind}. "
            "Convert a 0/1 mask with `.bool()`."
        )
    if mask.ndim != len(shape) or any(m not in (1, n) for m, n in zip(mask.shape, shape, strict=True)):
        raise ArgumentError(
            f"Expected `{name}` to have shape {list(shape)}, or 1 in places, but got {list(mask.shape)}."
        )


def masked_mean(
    values: Float[Tensor, " ..."], mask: Bool[Tensor, " ..."] | None = None, dim: int = -1
) -> Float[Tensor, " ..."]:
    """Mean of ``values`` along ``dim`` where ``mask`` is True; NaN where it never is.

    Args:
        values: Any floating point tensor; masked entries may be NaN or infinite.
        mask: Boolean, same rank as ``values``, sizes equal or 1.
        dim: The axis to reduce.

    Returns:
        The means in float32 (float64 stays), ``dim`` removed.

    Raises:
        TypeError: If ``values`` is not floating point or ``mask`` not boolean.
        ValueError: If ``mask`` does not fit ``values``.

    Example:
        >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    values = as_float(values, "values")
    if mask is None:
        return values.mean(dim)
    check_mask(mask, values.shape)
    total = torch.where(mask, values, constant(0.0, values)).sum(dim)
    return total / mask.expand(values.shape).sum(dim)  # 0/0 is the NaN


def shannon_entropy(p: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """−Σ p ln p over the last axis in nats, with 0 ln 0 = 0 and a finite gradient there."""
    if not p.requires_grad:
        entropy: Tensor = torch.special.entr(p).sum(-1)
        return entropy
    return 0.0 - (p * torch.where(p == 0, 1.0, p).log()).sum(-1)  # 0.0 - 0 is 0, -(0) would be -0


def exact_dtype(x: Shaped[Tensor, " ..."]) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have nothing wider."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def exact_matmul(
    a: Float[Tensor, "*#batch m k"], b: Float[Tensor, "*#batch k n"]
) -> Float[Tensor, "*#batch m n"]:
    """``a @ b`` in the widest type: under autocast or TF32, products keep three digits."""
    with torch.autocast(a.device.type, enabled=False):
        return a.to(exact_dtype(a)) @ b.to(exact_dtype(b))
