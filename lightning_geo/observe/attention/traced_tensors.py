"""Scores, softmaxes and probabilities that the tracer of handwritten attention knows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lightning_geo.observe.attention.products import Product
from lightning_geo.observe.attention.terms import Term

__all__ = ["Probabilities", "Scores", "Softmax", "WrittenAttention"]


@dataclass(frozen=True)
class Scores:
    """What is known of a tensor that holds the scores of an attention, before its softmax.

    Args:
        first: Axis (negative) of the product's first factor's rows.
        second: Axis of its second factor's.
        product: The product of queries and keys that it began as; None where it is not whole.
        parts: Products of the same queries that were joined along the columns; empty where there is one.
        given: Its two factors, or those of the first part.
        keys: How many columns are the product's, where columns without key were put behind (learned sinks).
        terms: What was added to it or hides in it since.
        opaque: Whether something else was done to it that may hide keys.
        number: Order among products: of several that are added up, the first is content with content.
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
        scores: As it was given them, rows before columns: [..., Nq, Nk].
        known: What is known of them.
        axes: Their axes of queries and keys before they were laid out so.
        place: Path of the module that it ran in.
        query: Their product's queries [..., Nq, D]; None where it is not known.
        key: Its keys [..., Nk, D].
        given: What queries and keys are views of.
        emitted: Whether its product with values was seen.
        used: Whether something else was computed from its probabilities.
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
        """Drop every tensor: what is known of the probabilities lives as long as they do, in a graph say."""
        nothing = self.scores.new_empty(0)
        self.scores, self.query, self.key, self.given = nothing, None, None, (nothing, nothing)
        self.known = replace(self.known, product=None, parts=(), given=self.given, terms=())


@dataclass(frozen=True)
class Probabilities:
    """What is known of a tensor that holds attention probabilities.

    Args:
        rows: Axis (negative) of queries.
        columns: Axis of keys.
        softmaxes: What it was computed from.
        whole: Whether it still has all columns, those without key aside.
    """

    rows: int
    columns: int
    softmaxes: tuple[Softmax, ...]
    whole: bool = True


@dataclass
class WrittenAttention:
    """An attention that was recognised: softmaxes whose probabilities are multiplied with values.

    Args:
        softmaxes: Several where a module combines them before the product (differential attention).
        value: [..., Nk, Dv]; None where it is not known.
        output: [..., Nq, Dv], the product itself laid out.
        product: The product as the model has it.
    """

    softmaxes: tuple[Softmax, ...]
    value: Tensor | None = None
    output: Tensor | None = None
    product: Tensor | None = None
