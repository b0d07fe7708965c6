"""The token sequence that each tensor of a running model comes from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_geo.observe.evidence.tensor_table import TensorTable

__all__ = ["Origin", "Origins", "makes_anew", "tensors_in"]

#: Functions that use only the shape, type and device of their argument: the result holds no tokens of it.
_LIKE: frozenset[Any] = frozenset({
    torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.rand_like, torch.randn_like,
    Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full, Tensor.new_tensor,
})  # fmt: skip
_CAT: frozenset[Any] = frozenset({torch.cat, torch.concat, torch.concatenate})

#: Ranks of sources: where an input takes part, the model's own tensors say nothing about tokens.
_MADE, _GIVEN = 1, 2


class Origin(NamedTuple):
    """Source of a tensor's tokens.

    Args:
        rank: 2 for an input of the model, 1 for its parameters, buffers and constants.
        source: Number of that input, parameter, buffer or constant.
        mixed: Bit mask of the attentions on the way through their queries; each mixed in other tokens.
        front: Number of tokens of another source in front.
    """

    rank: int
    source: int
    mixed: int = 0
    front: int = 0

    def same_sequence(self, keys: Origin) -> bool:
        """Whether ``keys`` and these queries are tokens of the same sequence.

        They are if both come from one source, and every attention on the keys' way is also on the queries'
        way. An encoder that reads the same ids as the decoder has attentions that the decoder has not.
        """
        return self[:2] == keys[:2] and not keys.mixed & ~self.mixed


class Origins:
    """Follows the tokens of a model's inputs through the torch functions that it calls.

    A function's result has the origin of its first argument of the highest rank. Results of code that shows
    no torch functions (custom autograd functions, scripted modules) have no known origin.
    """

    def __init__(self) -> None:
        self._known: TensorTable[Origin] = TensorTable()
        #: sources and attentions so far, which number the next ones
        self.sources = self.attentions = 0

    def clear(self) -> None:
        """Forget everything: in the next forward pass the same tensors get the same numbers."""
        self._known.clear()
        self.sources = self.attentions = 0

    def _new(self, rank: int, mixed: int = 0) -> Origin:
        self.sources += 1
        return Origin(rank, self.sources - 1, mixed)

    def give(self, tensors: Iterable[Tensor]) -> None:
        """Register inputs of the model: each unknown tensor becomes a source of its own."""
        for x in tensors:
            if self.of(x) is None:
                self._known.set(x, self._new(_GIVEN))

    def make(self, tensors: Iterable[Tensor]) -> None:
        """Register the model's own constants."""
        for x in tensors:
            if self.of(x) is None:
                self._known.set(x, self._new(_MADE))

    def of(self, x: Any) -> Origin | None:
        """Return a tensor's origin; None if unknown."""
        known = self._known.get(x)
        return Origin(_MADE, id(x)) if known is None and isinstance(x, nn.Parameter) else known

    def set(self, x: Tensor, origin: Origin) -> None:
        """Set a tensor's origin, which another run has shown."""
        self._known.set(x, origin)

    def attended(self, query: Any, result: Any) -> None:
        """Register an attention's result: tokens of the queries' sequence, mixed by one more attention."""
        origin = self.of(query)
        if origin is not None:
            bit = 1 << self.attentions
            self.attentions += 1
            for x in _tensors_of(result):
                self._known.set(x, origin._replace(mixed=origin.mixed | bit))

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow a torch function that returned."""
        if func is Tensor.__setitem__:
            self._write_into(args[0], args[-1])
            return
        if isinstance(result, Tensor):
            results: list[Tensor] | tuple[Tensor, ...] = (result,)
        elif isinstance(result, (tuple, list)):
            results = _tensors_of(result)
        else:
            return
        if not results:
            return
        given = list(tensors_in(args, kwargs))
        if not given or makes_anew(func):
            origin: Origin | None = self._new(_MADE)
        else:
            origin = self._of_cat(args, kwargs, given) if func in _CAT else self._of_all(given)
        if origin is not None:
            for x in results:
                self._known.set(x, origin)

    def _write_into(self, x: Tensor, value: Any) -> None:
        """Start a new sequence where tokens are written into a constant, such as inputs shifted right."""
        origin, written = self.of(x), self.of(value)
        if written is not None and written.rank == _GIVEN and (origin is None or origin.rank == _MADE):
            self._known.set(x, self._new(_GIVEN, written.mixed))

    def _of_all(self, given: list[Tensor]) -> Origin | None:
        origin: Origin | None = None
        for x in given:
            other = self.of(x)
            if other is None or other is origin:
                continue
            if origin is None or other.rank > origin.rank:
                origin = other
            elif other[:2] == origin[:2] and other.mixed | origin.mixed != origin.mixed:
                origin = origin._replace(mixed=origin.mixed | other.mixed)
        return origin

    def _of_cat(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]) -> Origin | None:
        """Return the origin of concatenated tokens: the last part of the highest rank."""
        known = [(x, o) for x in given if (o := self.of(x)) is not None]
        if not known:
            return None
        rank = max(o.rank for _, o in known)
        last, origin = [(x, o) for x, o in known if o.rank == rank][-1]
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
        features = last.is_floating_point() and dim in (-1, last.dim() - 1)
        front = 0
        for x in itertools.takewhile(lambda x: x is not last, given):
            before = self.of(x)
            if not x.numel():  # an empty cache has one axis and no tokens
                continue
            if features or (before is not None and before[:2] == origin[:2]):
                return self._of_all(
                    [last, *given]
                )  # more features of the same tokens, or parts of one sequence
            front += x.shape[dim]
        return origin._replace(front=origin.front + front)


def makes_anew(func: Any) -> bool:
    """Whether a torch function uses only a tensor's shape, type and device."""
    return func in _LIKE


def tensors_in(args: Iterable[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield tensors among a torch function's arguments, including those in lists and tuples."""
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item
    if kwargs:
        yield from tensors_in(kwargs.values(), {})


def _tensors_of(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [x for x in result if isinstance(x, Tensor)] if isinstance(result, (tuple, list)) else []
