"""Statistics of attention calls, hidden states and role vectors, each on several backends.

A backend is a module with one function per operation, and ``unsupported``, which says why it cannot take
a call of it. What it cannot take goes to ``chunked``, which takes everything.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_geo.kernels.blocks import BlockRule, mask_rows
from lightning_geo.kernels.masks import HIDDEN_BELOW
from lightning_geo.kernels.problem import STATISTICS, AttentionProblem, AttentionStatistics
from lightning_geo.kernels.vectors import MOMENTS, STREAM, HeadMoments, StreamStatistics, sum_directions
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
    "mask_rows",
    "retry_failed",
    "stream_statistics",
    "sum_directions",
]

Backend = Literal["auto", "triton", "chunked", "reference"]
BACKENDS = get_args(Backend)

_log = logging.getLogger(__name__)

#: What failed unexpectedly, see :func:`_attempt`, and how; it is not tried again before :func:`retry_failed`.
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
}


def attention(problem: AttentionProblem, backend: Backend = "auto") -> AttentionStatistics:
    """Statistics of a checked attention call, without a gradient.

    Args:
        problem: The attention call.
        backend: ``"auto"`` is the fastest for where the tensors are; one that cannot take the call
            leaves it to ``"chunked"``.

    Returns:
        Its statistics; float64 planes from ``"reference"``, float32 else.
    """
    statistics: AttentionStatistics = _run("attention", backend, problem.query.device, problem)
    return statistics


def stream_statistics(
    x: Float[Tensor, "batch tokens features"],
    mask: Bool[Tensor, "batch tokens"] | None,
    before: Float[Tensor, "batch tokens features"] | None,
    wanted: frozenset[str],
    backend: Backend = "auto",
) -> StreamStatistics:
    """See :func:`lightning_geo.kernels.vectors.stream_statistics`, on any backend."""
    result: StreamStatistics = _run("stream_statistics", backend, x.device, x, mask, before, wanted)
    return result


def head_moments(
    x: Float[Tensor, "batch heads tokens dim"],
    mask: Bool[Tensor, "batch tokens"] | None,
    wanted: frozenset[str],
    backend: Backend = "auto",
) -> HeadMoments:
    """See :func:`lightning_geo.kernels.vectors.head_moments`, on any backend."""
    result: HeadMoments = _run("head_moments", backend, x.device, x, mask, wanted)
    return result


def _run(operation: str, backend: str, device: torch.device, *arguments: object) -> Any:
    """Run an operation on a backend, or on the next one that can take these arguments.

    What was picked and why is in this module's debug logging. A kernel that fails all the same (a compiler,
    a device that nobody tried) costs one warning where nobody asked for it by name, and no number. It is left
    out from then on for calls of its operation, dtype, width and device; others still run on that backend.
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
            if backend != "auto" or picked == "chunked":
                raise
            attempt = _attempt(operation, picked, arguments[0])
            reason = _FAILED[attempt] = f"{type(error).__name__}: {error}"
            what = " ".join(map(str, attempt[2:]))
            _log.warning(
                "%s: %s kernels fail for %s, torch does it instead: %s", operation, picked, what, reason
            )
    _log.debug("%s: backend chunked, since %s cannot take it: %s", operation, picked, reason)
    return _run(operation, "chunked", device, *arguments)


def retry_failed() -> None:
    """Let backends run again what they failed at: another run may have more memory, or another driver."""
    _FAILED.clear()


def _attempt(operation: str, backend: str, given: object) -> tuple[object, ...]:
    """What a failure says something about: backend, dtype, width and device."""
    x = given.query if isinstance(given, AttentionProblem) else given
    assert isinstance(x, Tensor)
    return operation, backend, x.dtype, f"width {x.shape[-1]}", x.device


def _function(
    operation: str, backend: str, *arguments: object
) -> tuple[Callable[..., Any] | None, str | None]:
    """A backend's function for these arguments, or why there is none."""
    attempt = _attempt(operation, backend, arguments[0])
    if attempt in _FAILED:
        return None, _FAILED[attempt]
    name, function = _FUNCTIONS[operation][backend]
    try:  # imported only where wanted: compilers take their time
        module = importlib.import_module(f"lightning_geo.kernels.{name}")
    except ImportError as error:
        return None, str(error)
    reason = module.unsupported(operation, *arguments) if hasattr(module, "unsupported") else None
    return (getattr(module, function), None) if reason is None else (None, reason)
