"""Attention written out as matmul, softmax, matmul (deberta, bloom, mpnet, gpt-j, ...)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_geo.observe.attention.carrying import (
    added_term,
    axes_after,
    begins_at_front,
    joined_products,
    joined_rows,
    keys_before,
)
from lightning_geo.observe.attention.products import is_product, product_of
from lightning_geo.observe.attention.terms import is_sum, keeps_visibility, term_of
from lightning_geo.observe.attention.traced_tensors import Probabilities, Scores, Softmax, WrittenAttention
from lightning_geo.observe.evidence.origins import makes_anew, tensors_in
from lightning_geo.observe.evidence.tensor_table import TensorTable

__all__ = ["SoftmaxTracer"]

_SOFTMAX: frozenset[Any] = frozenset({F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax})


@dataclass
class SoftmaxTracer:
    """Recognises attention by the operations that compute its tensors.

    Scores start as a batched matrix product and pass through functions that keep rows and columns. A softmax
    runs over one of these two axes, and its probabilities are multiplied with values. A softmax that is
    multiplied with nothing is no attention. A softmax that is used in another way is emitted at the end of
    its layer, if the layer showed no other attention.

    Args:
        emit: Called with each attention as soon as it is multiplied with values.
        place: Returns the path of the running module.
    """

    emit: Callable[[WrittenAttention], None]
    place: Callable[[], str]
    _known: TensorTable[Scores | Probabilities] = field(default_factory=TensorTable)
    _waiting: list[Softmax] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def unmultiplied(self, path: str) -> list[Softmax]:
        """Return softmaxes of an ended module that were used, but not multiplied with values."""
        within = [s for s in self._waiting if not path or s.place == path or s.place.startswith(f"{path}.")]
        self._waiting = [softmax for softmax in self._waiting if softmax not in within]
        return [softmax for softmax in within if softmax.used]

    def clear(self) -> None:
        """Forget all softmaxes and tensors."""
        self._known.clear()
        self._waiting.clear()

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow a torch function that returned."""
        if is_product(func):
            self._product(func, args, kwargs, result)
        elif len(self._known):
            given = [
                (x, known) for x in tensors_in(args, kwargs) if (known := self._known.get(x)) is not None
            ]
            if not given or makes_anew(func):
                return
            if func in _SOFTMAX:
                self._softmax(args, kwargs, result)
            elif func is Tensor.__setitem__:
                self._assigned(args)
            else:
                self._carry(func, args, kwargs, result, given)

    # -- products

    def _product(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        product = product_of(func, args, kwargs)
        known = [
            self._known.get(x) for x in (tensors_in(args, kwargs) if product is None else product.factors)
        ]
        for side, probabilities in enumerate(known):
            if isinstance(probabilities, Probabilities):
                rows, columns = probabilities.rows, probabilities.columns
                pair = None if product is None else product.with_values(result, side, rows, columns)
                if pair is not None:
                    value, output = pair if probabilities.whole else (None, None)
                    self._multiplied(probabilities, value, output, result)
                else:
                    _use(probabilities)
        if product is not None and not any(isinstance(one, Probabilities) for one in known):
            terms = added_term(func, args, kwargs, result)
            self._known.set(
                result, Scores(*product.axes, product, next(self._numbers), product.factors, terms=terms)
            )

    def _multiplied(
        self, probabilities: Probabilities, value: Tensor | None, output: Tensor | None, product: Tensor
    ) -> None:
        fresh = tuple(s for s in probabilities.softmaxes if not s.emitted)
        for softmax in fresh:
            softmax.emitted = True
        self._waiting = [softmax for softmax in self._waiting if not softmax.emitted]
        try:
            if fresh:
                self.emit(WrittenAttention(fresh, value, output, product))
        finally:
            for softmax in fresh:
                softmax.let_go()

    # -- softmax

    def _softmax(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        scores: Tensor = args[0] if args else kwargs["input"]
        known = self._known.get(scores)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if not isinstance(known, Scores) or not isinstance(dim, int):
            return
        columns = dim - scores.dim() if dim >= 0 else dim
        if columns not in (known.first, known.second):
            return
        swapped = columns == known.first
        rows = known.second if swapped else known.first
        query, key = (None, None) if known.product is None else known.product.rows
        if known.parts:
            query, key = joined_rows(known.parts, scores.shape[:-2])
        given = known.given
        if swapped:
            query, key, given = key, query, (given[1], given[0])
        laid_out = scores.movedim((rows, columns), (-2, -1))
        softmax = Softmax(laid_out, known, (rows, columns), self.place(), query, key, given)
        self._waiting.append(softmax)
        self._known.set(result, Probabilities(rows, columns, (softmax,)))

    # -- everything else

    def _assigned(self, args: tuple[Any, ...]) -> None:
        """Follow an assignment ``scores[mask] = value``."""
        x, index, value = args
        known = self._known.get(x)
        if isinstance(known, Scores):
            whole = isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == x.shape
            axes = known.first, known.second
            term = term_of(Tensor.masked_fill, (x, index, value), {}, x, axes) if whole else None
            terms = known.terms if term is None else (*known.terms, term)
            self._known.set(x, replace(known, terms=terms, opaque=known.opaque or term is None))

    def _carry(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        given: list[tuple[Tensor, Scores | Probabilities]],
    ) -> None:
        """Pass records of a function's arguments on to its results, as far as these keep the two axes."""
        probable = [(x, known) for x, known in given if isinstance(known, Probabilities)]
        softmaxes = tuple(dict.fromkeys(s for _, known in probable for s in known.softmaxes))
        for y in filter(_is_float, result if isinstance(result, (tuple, list)) else [result]):
            if softmaxes:
                x, probabilities = probable[0]
                axes = axes_after(func, args, kwargs, x, y, (probabilities.rows, probabilities.columns))
                if axes is None or y.shape[axes[0]] != x.shape[probabilities.rows]:
                    _use(Probabilities(0, 0, softmaxes))
                    continue
                keys = softmaxes[0].known.keys
                whole = y.shape[axes[1]] == x.shape[probabilities.columns] or (
                    keys == y.shape[axes[1]] and begins_at_front(func, args, probabilities.columns)
                )
                self._known.set(y, Probabilities(*axes, softmaxes, probabilities.whole and whole))
                continue
            pairs = [(x, known) for x, known in given if isinstance(known, Scores)]
            x, scores = min(pairs, key=lambda pair: pair[1].number)
            before = scores.first, scores.second
            axes = axes_after(func, args, kwargs, x, y, before)
            if axes is None:
                self._known.drop(y)
                continue
            scores = self._with_terms(func, args, kwargs, x, scores, given)
            if any(y.shape[a] != x.shape[b] for a, b in zip(axes, before, strict=True)):
                keys = keys_before(func, args, kwargs, x, before[1]) if len(given) == 1 else None
                # Unknown keys mean that parts were joined or cut: the scores have no single product any more.
                product = None if keys is None else scores.product
                products = [(part, one.product) for part, one in pairs]
                parts = joined_products(func, args, kwargs, products, before[1])
                scores = replace(scores, product=product, keys=keys, parts=parts, terms=(), opaque=True)
            self._known.set(y, replace(scores, first=axes[0], second=axes[1]))

    def _with_terms(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        x: Tensor,
        scores: Scores,
        given: list[tuple[Tensor, Scores | Probabilities]],
    ) -> Scores:
        """Add the mask that a function applies to scores to their record."""
        others = [other for y, other in given if y is not x and isinstance(other, Scores)]
        if others:  # the masks of two products apply to their sum
            terms = tuple(term for other in others for term in other.terms)
            opaque = scores.opaque or any(o.opaque for o in others) or not is_sum(func)
            return replace(scores, terms=scores.terms + terms, opaque=opaque)
        term = term_of(func, args, kwargs, x, (scores.first, scores.second))
        if term is not None:
            return replace(scores, terms=(*scores.terms, term))
        return scores if keeps_visibility(func, args, kwargs, x) else replace(scores, opaque=True)


def _use(known: Scores | Probabilities | None) -> None:
    if isinstance(known, Probabilities):
        for softmax in known.softmaxes:
            softmax.used = True


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
