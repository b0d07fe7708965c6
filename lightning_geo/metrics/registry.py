"""Which function computes which metric. A new metric is one function, one MetricSpec, one test.

A function is registered under its metric's name with :func:`computes` in the module of its family
and found with :func:`metric_function`. How it is called depends on ``MetricSpec.kind``; what it
returns is float, NaN where the metric is not defined:

========== ======================================================== ===============================
kind       called as                                                returns
========== ======================================================== ===============================
row        ``fn(*planes)``: the fields of ``AttentionStatistics``  ``[B, H, Nq]``, one per query.
           that ``reads`` names, in that order                      Without a registered function:
                                                                    the field of the same name
tokens     the same with fields of ``StreamStatistics``             ``[B, N]``, one per token
sequence   ``fn(call)``, an :class:`ObservedCall`                   ``[B, H]``, one per sequence
directions ``fn(total, valid, directed)``, what                     ``[...]``, one per sequence.
           ``cone.sum_of_directions`` returns: taken once for all   ``cone.head``, of head outputs,
           of them                                                  is ``cone``'s
moments    ``fn(eigenvalues)``: ``[..., d]``, descending, >= 0      ``[...]``
heads      ``fn(covariance)``: ``[H, D, H, D]``, centred            ``[H]`` or scalar, as the axes
                                                                    of the spec say
slopes     ``fn(slope)``: ``[H]``, the derivative of one sequence's  ``[H]``, one per sequence
           loss by a factor 1 on each head's output
bases      ``fn(u, v)``: ``[..., d, r]`` each, orthonormal columns; ``[...]``
           the caller decides which pair (query and key, now and
           baseline, now and before)
weights    ``fn(weights)``, a ``HeadWeights``; ``fn(weights, part)``  ``[H]`` or scalar, as the axes
           where the spec has parts. ``reads`` names the roles       of the spec say
           that it needs; a part is one
scores     ``fn(scores)``, an :class:`ObservedScores`;              ``[B, H]``, one per sequence
           ``fn(scores, part)`` where the spec has parts
counts     ``fn(margins, part)``, what heads' gates are: ``[7, H]``  scalar
reads      ``fn(reads)``, a ``HeadReads`` of the role that is       ``[B, H]``, one per sequence
           the part
========== ======================================================== ===============================

A function needs no line in ``functional/__init__.py`` unless users are to call it by hand; only
the first function of a new family adds its module there.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import spec_of

if TYPE_CHECKING:
    pass

__all__ = ["METRIC_FUNCTIONS", "computes", "metric_function", "reads_of"]

_Function = TypeVar("_Function", bound=Callable[..., Tensor])

#: The registered functions by metric name. Read it through :func:`metric_function`.
METRIC_FUNCTIONS: dict[str, Callable[..., Tensor]] = {}

_READS: dict[str, tuple[str, ...]] = {}


def computes(name: str, reads: tuple[str, ...] = ()) -> Callable[[_Function], _Function]:
    """Register the decorated function as the one that computes the catalog's metric ``name``.

    Args:
        name: Name of a :class:`~lightning_geo.metrics.spec.MetricSpec` in the catalog.
        reads: Fields of ``AttentionStatistics`` (of ``StreamStatistics`` for kind ``tokens``, roles for kind
            ``weights``, ``"attended"`` for kind ``scores`` where softmax is enough) that it needs: what
            nothing reads is not computed.

    Returns:
        A decorator that returns its function unchanged.

    Raises:
        ValueError: If the catalog has no such metric, or the metric already has a function.

    Example:
        >>> @computes("drft")  # doctest: +ELLIPSIS
        ... def drift(u, v): ...
        Traceback (most recent call last):
        ValueError: Expected `name` to be a metric of the catalog but got 'drft'. Did you mean 'drift'? ...
    """
    if name not in CATALOG:
        near = difflib.get_close_matches(name, CATALOG, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"Expected `name` to be a metric of the catalog but got {name!r}. Did you mean {near!r}? "
            "A new metric needs its MetricSpec in lightning_geo/catalog.py first."
        )

    def register(function: _Function) -> _Function:
        if name in METRIC_FUNCTIONS:
            known = METRIC_FUNCTIONS[name]
            raise ValueError(
                f"Expected one function per metric but {name!r} is already computed by "
                f"{known.__module__}.{known.__qualname__}. Remove one of the two."
            )
        METRIC_FUNCTIONS[name] = function
        _READS[name] = reads
        return function

    return register


def reads_of(name: str) -> tuple[str, ...]:
    """Return which fields of ``AttentionStatistics`` or ``StreamStatistics``, or which roles, it needs.

    Example:
        >>> reads_of("normalized_entropy"), reads_of("attention_distance"), reads_of("stable_rank")
        (('entropy', 'visible_keys'), ('attention_distance',), ())
    """
    spec = spec_of(name)
    own = (spec.name,) if spec.kind in ("row", "tokens") else ()
    if spec.kind == "weights" and spec.parts:
        return (name.rpartition(".")[2],)
    return _READS.get(spec.name, own)


def metric_function(name: str) -> Callable[..., Any]:
    """Return the function that computes a metric, to be called as its ``kind`` says.

    A metric on other axes (``cone.head``) falls back to its base name's function (``cone``), and a
    ``row`` or ``tokens`` metric without function of its own to the field of its name.

    Args:
        name: Metric name or stored name, such as ``entropy``, ``cone.head``, ``drift.query``.

    Raises:
        KeyError: If there is no such metric, or nothing computes it.

    Example:
        >>> import torch
        >>> metric_function("stable_rank.query")(torch.tensor([2.0, 1.0, 1.0]))
        tensor(2.)
    """
    spec = spec_of(name)
    for known in (spec.name, spec.name.partition(".")[0]):
        if known in METRIC_FUNCTIONS:
            return METRIC_FUNCTIONS[known]
    if spec.kind in ("row", "tokens"):
        return _as_it_is
    raise KeyError(f"No function computes {spec.name!r}: decorate one with @computes({spec.name!r}).")


def _as_it_is(plane: Tensor) -> Tensor:
    return plane
