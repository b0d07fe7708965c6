"""Statistics of attention calls, hidden states and role vectors, each on several backends.

A backend is a module with one function per operation and, where it cannot take every call, ``unsupported``,
which returns the reason. Calls that a backend cannot take fall back to ``chunked``, which takes all of them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_geo.kernels.blocks import BlockRule, mask_rows
from lightning_geo.kernels.joined_moments import join_heads, moments_layout, moments_nbytes
from lightning_geo.kernels.masks import HIDDEN_BELOW
from lightning_geo.kernels.problem import STATISTICS, AttentionProblem, AttentionStatistics
from lightning_geo.kernels.vectors import MOMENTS, STREAM, HeadMoments, StreamStatistics, sum_directions
from lightning_geo.utils.cuda_graphs import is_capturing
from lightning_geo.utils.shapes import Bool, Float

__all__ = [
    "BACKENDS",
    "HIDDEN_BELOW",
    "MOMENTS",
    "STATISTICS",
    "STREAM",
    "AttentionProblem",
    "AttentionStatistics",
    "Backend",
    "BlockRule",
    "HeadMoments",
    "StreamStatistics",
    "attention",
    "head_moments",
    "join_heads",
    "mask_rows",
    "moments_layout",
    "moments_nbytes",
    "retry_failed",
    "sketch",
    "stream_statistics",
    "sum_directions",
]

Backend = Literal["auto", "triton", "chunked", "reference"]
BACKENDS = get_args(Backend)

_log = logging.getLogger(__name__)

#: Kinds of call (:func:`_attempt`) that failed unexpectedly, with the error, until :func:`retry_failed`.
_FAILED: dict[tuple[object, ...], str] = {}

#: Operation -> backend -> module and function.
_FUNCTIONS = {
    "attention": {
        "triton": ("triton", "attention"),
        "chunked": ("chunked", "chunked"),
        "reference": ("reference", "reference"),
    },
    "stream_statistics": {
        "triton": ("triton.vectors", "stream_statistics"),
        "chunked": ("vectors", "stream_statistics"),
        "reference": ("reference", "reference_stream"),
    },
    "head_moments": {
        "triton": ("triton.vectors", "head_moments"),
        "chunked": ("vectors", "head_moments"),
        "reference": ("reference", "reference_moments"),
    },
    "sketch": {
        "triton": ("triton.sketch_launch", "sketch"),
        "chunked": ("sketches", "sketch"),
        "reference": ("reference", "reference_sketch"),
    },
}


def attention(problem: AttentionProblem, backend: Backend = "auto") -> AttentionStatistics:
    """Statistics of a checked attention call, without a gradient.

    Args:
        problem: The attention call.
        backend: ``"auto"`` picks the fastest one for the tensors' device. A backend that cannot take the
            call leaves it to ``"chunked"``.

    Returns:
        Its statistics; ``"reference"`` returns float64 planes, the others float32.
    """
    statistics: AttentionStatistics = _run("attention", backend, problem.query.device, problem)
    return statistics


def stream_statistics(
    x: Float[Tensor, "batch tokens features"],
    mask: Bool[Tensor, "batch tokens"] | None,
    before: Float[Tensor, "batch tokens features"] | None,
    requested: frozenset[str],
    backend: Backend = "auto",
) -> StreamStatistics:
    """See :func:`lightning_geo.kernels.vectors.stream_statistics`, on any backend."""
    result: StreamStatistics = _run("stream_statistics", backend, x.device, x, mask, before, requested)
    return result


def head_moments(
    x: Float[Tensor, "batch *heads tokens dim"],
    mask: Bool[Tensor, "batch tokens"] | None,
    requested: frozenset[str],
    backend: Backend = "auto",
) -> HeadMoments:
    """See :func:`lightning_geo.kernels.vectors.head_moments`, on any backend."""
    result: HeadMoments = _run("head_moments", backend, x.device, x, mask, requested)
    return result


def sketch(
    x: Float[Tensor, "tokens layers features"],
    real: Bool[Tensor, " tokens"] | None,
    draws: Float[Tensor, "layers rows tokens"],
    before: Float[Tensor, "layers rows features"] | None,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "layers rows features"], Float[Tensor, "layers rows"]]:
    """See :func:`lightning_geo.kernels.sketches.sketch`, on any backend."""
    result: tuple[Tensor, Tensor] = _run("sketch", backend, x.device, x, real, draws, before)
    return result


def _run(operation: str, backend: str, device: torch.device, *arguments: object) -> Any:
    """Run an operation on a backend, or on the next one that can take these arguments.

    The debug log names the backend and the reason for a fallback. A kernel picked by ``"auto"`` may still
    fail, on a device or with a compiler that was never tried: one warning is logged, ``chunked`` computes the
    result, and calls of the same operation, dtype, width and device skip the backend from then on. A kernel
    requested by name raises, and so does one whose call is captured into a CUDA graph.
    """
    picked = ("triton" if device.type == "cuda" else "chunked") if backend == "auto" else backend
    function, reason = _function(operation, picked, *arguments)
    if function is not None:
        _log.debug("%s: backend %s for tensors on %s", operation, picked, device)
        try:
            return function(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # a kernel that fails while a CUDA graph is captured may well run outside of it
            if backend != "auto" or picked == "chunked" or is_capturing():
                raise
            attempt = _attempt(operation, picked, arguments[0])
            reason = _FAILED[attempt] = f"{type(error).__name__}: {error}"
            inputs = " ".join(map(str, attempt[2:]))
            _log.warning(
                "%s: %s kernels fail for %s, torch does it instead: %s", operation, picked, inputs, reason
            )
    _log.debug("%s: backend chunked, since %s cannot take it: %s", operation, picked, reason)
    return _run(operation, "chunked", device, *arguments)


def retry_failed() -> None:
    """Forget failed kernels, so that the next run tries them again: it may have more memory."""
    _FAILED.clear()


def _attempt(operation: str, backend: str, argument: object) -> tuple[object, ...]:
    """The kind of call that a failure rules out: operation, backend, dtype, width and device."""
    x = argument.query if isinstance(argument, AttentionProblem) else argument
    assert isinstance(x, Tensor)
    return operation, backend, x.dtype, f"width {x.shape[-1]}", x.device


def _function(
    operation: str, backend: str, *arguments: object
) -> tuple[Callable[..., Any] | None, str | None]:
    """A backend's function for these arguments, or the reason why it cannot take them."""
    attempt = _attempt(operation, backend, arguments[0])
    if attempt in _FAILED:
        return None, _FAILED[attempt]
    name, function = _FUNCTIONS[operation][backend]
    try:  # imported at first use: importing a compiler takes seconds
        module = importlib.import_module(f"lightning_geo.kernels.{name}")
    except ImportError as error:
        return None, str(error)
    reason = module.unsupported(operation, *arguments) if hasattr(module, "unsupported") else None
    return (getattr(module, function), None) if reason is None else (None, reason)
