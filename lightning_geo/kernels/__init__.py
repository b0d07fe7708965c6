"""Attention statistics without the attention matrix: one normalised problem, several backends.

Each backend is a function from a problem to its statistics and a function that says why it cannot take a
problem. What one cannot take goes to the next: in the end to ``chunked``, which takes everything.
"""

from __future__ import annotations

import importlib
import logging
from typing import Literal, get_args

from lightning_geo.kernels.blocks import BlockRule, mask_rows
from lightning_geo.kernels.masks import HIDDEN_BELOW
from lightning_geo.kernels.problem import STATISTICS, AttentionProblem, AttentionStatistics

__all__ = [
    "BACKENDS",
    "HIDDEN_BELOW",
    "STATISTICS",
    "AttentionProblem",
    "AttentionStatistics",
    "Backend",
    "BlockRule",
    "compute",
    "mask_rows",
]

Backend = Literal["auto", "triton", "compiled", "chunked", "reference"]
BACKENDS = get_args(Backend)

_log = logging.getLogger(__name__)


def compute(problem: AttentionProblem, backend: Backend = "auto") -> AttentionStatistics:
    """Run a checked problem on a backend, or on the next one that can take it.

    What was picked and why is in this module's debug logging.

    Args:
        problem: The attention call.
        backend: ``"auto"`` is the fastest for where the tensors are.

    Returns:
        Its statistics, without a gradient; float64 planes from ``"reference"``, float32 else.
    """
    if backend == "auto":
        backend = "triton" if problem.query.device.type == "cuda" else "chunked"
    reason = None
    if backend in ("triton", "compiled"):  # imported only where wanted: both load compilers
        module = importlib.import_module(f"lightning_geo.kernels.{backend}")
        reason = module.unsupported(problem)
    if reason is not None:
        _log.debug("backend chunked, since %s cannot take it: %s", backend, reason)
        backend = "chunked"
    else:
        _log.debug("backend %s for tensors on %s", backend, problem.query.device)
    function = getattr(importlib.import_module(f"lightning_geo.kernels.{backend}"), backend)
    statistics: AttentionStatistics = function(problem)
    return statistics
