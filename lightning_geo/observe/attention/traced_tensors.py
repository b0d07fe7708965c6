"""Scores, softmaxes and probabilities that the tracer of handwritten attention knows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lightning_geo.observe.attention.products import Product
from lightning_geo.observe.attention.terms import Term

__all__ = ["Probabilities", "Scores", "Softmax", "WrittenAttention"]


@dataclass(frozen=True)
class Scores:
    """Record of a tensor with an attention's scores, before the softmax.

    Args:
        first: Axis (negative) of the rows of the product's first factor.
        second: Axis (negative) of the rows of its second factor.
        product: The product of queries and keys; None if the tensor holds only a part of it.
        parts: Products of the same queries joined along the columns; empty for a single one.
        given: The product's two factors, or those of the first part.
        keys: Number of columns from the product, if columns without a key were appended (learned sinks).
        terms: Masks and biases applied since.
        opaque: Whether another operation that may hide keys was applied.
        number: Order among products: of several that are added, the first multiplies content with content.
    """

    first: int
    second: int
    product: Product | None
    number: int
    given: tuple[Tensor, Tensor]
    keys: int | None = None
    parts: tuple[Product, ...] = ()
    terms: tuple[Term, ...] = ()
    opaque: bool = False


@dataclass(eq=False)
class Softmax:
    """One softmax over scores.

    Args:
        scores: Input of the softmax with rows before columns: [..., Nq, Nk].
        known: Record of the scores.
        axes: Axes of queries and keys in the original layout.
        place: Path of the module in which it ran.
        query: Queries of the product [..., Nq, D]; None if unknown.
        key: Keys of the product [..., Nk, D]; None if unknown.
        given: The tensors that queries and keys are views of.
        emitted: Whether its product with values was seen.
        used: Whether its probabilities were used in another way.
    """

    scores: Tensor
    known: Scores
    axes: tuple[int, int]
    place: str
    query: Tensor | None
    key: Tensor | None
    given: tuple[Tensor, Tensor]
    emitted: bool = False
    used: bool = False

    def let_go(self) -> None:
        """Drop every tensor: this record lives as long as the probabilities, which a graph may keep."""
        nothing = self.scores.new_empty(0)
        self.scores, self.query, self.key, self.given = nothing, None, None, (nothing, nothing)
        self.known = replace(self.known, product=None, parts=(), given=self.given, terms=())


@dataclass(frozen=True)
class Probabilities:
    """Record of a tensor with attention probabilities.

    Args:
        rows: Axis (negative) of queries.
        columns: Axis of keys.
        softmaxes: The softmaxes that it was computed from.
        whole: Whether it still has the columns of all keys.
    """

    rows: int
    columns: int
    softmaxes: tuple[Softmax, ...]
    whole: bool = True


@dataclass
class WrittenAttention:
    """A recognised attention: softmaxes whose probabilities are multiplied with values.

    Args:
        softmaxes: Several where a module combines them before the product (differential attention).
        value: [..., Nk, Dv]; None if unknown.
        output: [..., Nq, Dv], the product in this layout.
        product: The product in the model's layout.
    """

    softmaxes: tuple[Softmax, ...]
    value: Tensor | None = None
    output: Tensor | None = None
    product: Tensor | None = None
