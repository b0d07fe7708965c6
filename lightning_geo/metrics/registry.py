"""Which function computes which metric, and which quantities it reads.

A function is registered under its metric's name with :func:`computes` in the module of its family and found
with :func:`metric_function`. It is called with the quantities that ``reads`` names, in that order, and with
the part (role, stage, gate) where the last column says so. It returns float, NaN where the metric is not
defined. Leading axes ``...`` are layers and more: what a function does, it does for all of them at once.

====================================== ============================================== ====================
quantity                               what it is                                     returns
====================================== ============================================== ====================
fields of ``AttentionStatistics``      one number per query row, ``[..., B, H, Nq]``  the same, averaged
                                                                                      over rows; or the
                                                                                      largest is taken
``received``, ``key_mask``             attention by key ``[..., B, H, Nk]``, and      ``[..., B, H]``
                                       which keys are real ``[..., B, Nk]`` or None
fields of ``StreamStatistics``         one number per token, ``[B, N]``               the same, averaged
``directions``, ``tokens``,            sum of unit vectors of hidden states           ``[B]``
``directed``                           ``[B, d]``, numbers of tokens ``[B]``
``output.directions`` and so on        the same of heads' outputs, ``[..., B, H, D]`` ``[..., B, H]``
``query.directions``, ``query.tokens`` the same of one role, ``[..., B, h, D]``;      ``[..., B, H]``
``key.directions``, ``key.tokens``     heads of keys may be fewer
``query.length``, ``key.length``       mean length of vectors, ``[..., B, H]``        ``[..., B, H]``
``eigenvalues``                        of a role's covariance, ``[..., D]``,          ``[...]``
                                       descending, at least 0
``basis``, ``basis.baseline``,         orthonormal columns ``[..., D, r]``: the       ``[...]``
``basis.previous``, ``basis.query``,   role's now, at the baseline, in the sample
``basis.key``                          before; two roles'
``block_norms``, ``traces``            of the covariance of all heads' outputs:       ``[..., H]`` or
                                       Frobenius norms of its blocks ``[..., H, H]``  ``[...]``
                                       and traces of the heads' own ``[..., H]``
``weights``                            :class:`.HeadWeights`; ``roles`` names those   ``[H]`` or a scalar;
                                       that must be known                             called with the part
``inputs``                             :class:`.HeadReads` of the part's role         ``[B, H]``
``scores``, ``attended``               :class:`.ObservedScores`, its products known;  ``[B, H]``; called
                                       or its softmax alone                           with the part
``margins``                            of heads' gates, ``[7, ..., H]``               ``[...]``; with the part
``drawn``, ``drawn.before``,           drawn weights now and at the sample before     ``[L]``
``drawn.each``                         ``[L, n]``; how many each stands for ``[n]``
``drawn.wide``, ``drawn.wide.before``  those of float32 and float64                   ``[L]``
``drawn.products``, ``drawn.module``   inner products of L layers' matrices           ``[L]``
                                       ``[L, L]``, number of each one's module ``[L]``
``future.visible``, ``future.pairs``   pairs with later tokens that are visible, all  ``[L]``
                                       ``[L]``
``padding.visible``, ``padding.pairs`` the same with padding                          ``[L]``
``head_gradient``                      derivative of a sequence's loss by a factor 1  ``[..., H]``
                                       on each head's output, ``[..., H]``
====================================== ============================================== ====================

A collector (``measurement/collectors/``) offers the quantities of one source of data. Metrics from outside
(:func:`lightning_geo.register_metric`) read the same quantities, or those of a collector of their own. A
function needs no line in ``functional/__init__.py`` unless users are to call it by hand; only the first
function of a new family adds its module there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.foreign import FOREIGN
from lightning_geo.metrics.selection import spec_of
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.formatting import did_you_mean

if TYPE_CHECKING:  # this room loads no torch
    from torch import Tensor

__all__ = ["METRIC_FUNCTIONS", "computes", "metric_function", "products_of", "reads_of", "roles_of"]

_Function = TypeVar("_Function", bound="Callable[..., Tensor]")

#: The registered functions by metric name. Read it through :func:`metric_function`.
METRIC_FUNCTIONS: dict[str, Callable[..., Tensor]] = {}

_READS: dict[str, tuple[str, ...]] = {}
_ROLES: dict[str, tuple[str, ...]] = {}
_PRODUCTS: dict[str, tuple[str, ...]] = {}


def computes(
    name: str,
    reads: tuple[str, ...] = (),
    roles: tuple[str, ...] = (),
    products: tuple[str, ...] = (),
) -> Callable[[_Function], _Function]:
    """Register the decorated function as the one that computes the catalog's metric ``name``.

    Args:
        name: Name of a :class:`~lightning_geo.metrics.spec.MetricSpec` in the catalog.
        reads: The quantities that it is called with, see above. One that nothing reads is not computed.
        roles: Roles whose weights must be known, for functions that read ``weights``.
        products: For functions that decompose matrices, the names of these. A sample calls such a function
            on the host, with the quantity's products in the quantity's place: :class:`.HeadProducts`,
            :class:`.ReadMoments` or :class:`.ScoreProducts`.

    Returns:
        A decorator that returns its function unchanged.

    Raises:
        ValueError: If the catalog has no such metric, or the metric already has a function.

    Example:
        >>> @computes("drft")  # doctest: +ELLIPSIS
        ... def drift(u, v): ...
        Traceback (most recent call last):
        lightning_geo.utils.errors.ArgumentError: Expected `name` to be a metric ... Did you mean 'drift'? ...
    """
    if name not in CATALOG:
        raise ArgumentError(
            f"Expected `name` to be a metric of the catalog but got {name!r}. {did_you_mean(name, CATALOG)} "
            "A new metric needs its entry in lightning_geo/metrics/families first."
        )

    def register(function: _Function) -> _Function:
        if name in METRIC_FUNCTIONS:
            known = METRIC_FUNCTIONS[name]
            raise ArgumentError(
                f"Expected one function per metric but {name!r} is already computed by "
                f"{known.__module__}.{known.__qualname__}. Remove one of the two."
            )
        METRIC_FUNCTIONS[name] = function
        _READS[name], _ROLES[name], _PRODUCTS[name] = reads, roles, products
        return function

    return register


def reads_of(name: str) -> tuple[str, ...]:
    """Return the quantities that a metric is computed from; without a function, that of its own name.

    Example:
        >>> reads_of("normalized_entropy"), reads_of("attention_distance"), reads_of("stable_rank.query")
        (('entropy', 'visible_keys'), ('attention_distance',), ('eigenvalues',))
    """
    base = spec_of(name).name
    return FOREIGN[base].reads if base in FOREIGN else _READS.get(base, (base,))


def roles_of(name: str) -> tuple[str, ...]:
    """Return the roles whose weights a metric needs: the part's, where it has one for each role."""
    spec = spec_of(name)
    part = (name.rpartition(".")[2],) if spec.parts else ()
    if spec.name in FOREIGN:
        return (*part, *FOREIGN[spec.name].roles)
    return part or _ROLES.get(spec.name, ())


def products_of(name: str) -> tuple[str, ...]:
    """Return the names of the small matrices that a metric's function decomposes; nothing if it does not.

    Example:
        >>> products_of("von_neumann_entropy"), products_of("entropy")
        (('key_query',), ())
    """
    base = spec_of(name).name
    return () if base in FOREIGN else _PRODUCTS.get(base, ())


def metric_function(name: str) -> Callable[..., Any]:
    """Return the function that computes a metric from the quantities of :func:`reads_of`.

    Without a registered function, a metric is the quantity of its name.

    Args:
        name: Metric name or stored name, such as ``entropy``, ``cone.head``, ``drift.query``.

    Raises:
        KeyError: If there is no such metric.

    Example:
        >>> import torch
        >>> metric_function("stable_rank.query")(torch.tensor([2.0, 1.0, 1.0]))
        tensor(2.)
    """
    base = spec_of(name).name
    return FOREIGN[base].function if base in FOREIGN else METRIC_FUNCTIONS.get(base, _as_it_is)


def _as_it_is(quantity: Tensor) -> Tensor:
    return quantity
