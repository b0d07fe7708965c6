"""Statistics of attention calls, hidden states and role vectors, each on several backends.

A backend is a module with one function per operation, and ``unsupported``, which says why it cannot take
a call of it. What it cannot take goes to ``chunked``, which takes everything.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor

from lightning_geo.kernels.blocks import BlockRule, mask_rows
from lightning_geo.kernels.masks import HIDDEN_BELOW
from lightning_geo.kernels.problem import STATISTICS, AttentionProblem, AttentionStatistics
from lightning_geo.kernels.vectors import MOMENTS, STREAM, HeadMoments, StreamStatistics, sum_directions

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
    "stream_statistics",
    "sum_directions",
]

Backend = Literal["auto", "triton", "compiled", "chunked", "reference"]
BACKENDS = get_args(Backend)

_log = logging.getLogger(__name__)

#: Operation -> backend -> module and function.
_FUNCTIONS = {
    "attention": {
        "triton": ("triton", "attention"),
        "compiled": ("compiled", "compiled"),
        "chunked": ("chunked", "chunked"),
        "reference": ("reference", "reference"),
    },
    "stream_statistics": {
        "triton": ("triton_vectors", "stream_statistics"),
        "chunked": ("vectors", "stream_statistics"),
        "reference": ("reference", "reference_stream"),
    },
    "head_moments": {
        "triton": ("triton_vectors", "head_moments"),
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
    statistics: AttentionStatistics = _function("attention", backend, problem.query, problem)(problem)
    return statistics


def stream_statistics(
    x: Tensor,
    mask: Tensor | None,
    before: Tensor | None,
    wanted: frozenset[str],
    backend: Backend = "auto",
) -> StreamStatistics:
    """See :func:`lightning_geo.kernels.vectors.stream_statistics`, on any backend."""
    arguments = x, mask, before, wanted
    result: StreamStatistics = _function("stream_statistics", backend, x, *arguments)(*arguments)
    return result


def head_moments(
    x: Tensor, mask: Tensor | None, wanted: frozenset[str], backend: Backend = "auto"
) -> HeadMoments:
    """See :func:`lightning_geo.kernels.vectors.head_moments`, on any backend."""
    result: HeadMoments = _function("head_moments", backend, x, x, mask, wanted)(x, mask, wanted)
    return result


def _function(operation: str, backend: str, example: Tensor, *arguments: object) -> Callable[..., Any]:
    """The backend's function for these arguments, or the next that can take them.

    What was picked and why is in this module's debug logging.
    """
    functions = _FUNCTIONS[operation]
    if backend == "auto":
        backend = "triton" if example.device.type == "cuda" else "chunked"
    reason: str | None = "it has no such function"
    if backend in functions:
        name, function = functions[backend]
        try:  # imported only where wanted: compilers take their time
            module = importlib.import_module(f"lightning_geo.kernels.{name}")
            reason = module.unsupported(operation, *arguments) if hasattr(module, "unsupported") else None
        except ImportError as error:
            reason = str(error)
        if reason is None:
            _log.debug("%s: backend %s for tensors on %s", operation, backend, example.device)
            picked: Callable[..., Any] = getattr(module, function)
            return picked
    _log.debug("%s: backend chunked, since %s cannot take it: %s", operation, backend, reason)
    return _function(operation, "chunked", example, *arguments)
