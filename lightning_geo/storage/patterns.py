"""Attention patterns in the record: pooled to a few cells and written as one byte each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.utils.errors import ArgumentError

__all__ = ["CELLS", "AttentionPatterns", "as_bytes"]

#: Cells of a pattern along each axis, at most.
CELLS = 32

#: Bytes of values 0 and 1, and of a cell that has no value.
_LARGEST, _ABSENT = 254, 255


def as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return attention from 0 to 1 as bytes: 254 times its root, rounded; 255 where it is not finite.

    Small attention gets finer steps: reading x back is off by at most √x / 254 + 0.000004, that is 0.004 at
    1 and 0.0007 at 1/32.

    Args:
        values: Any shape.

    Example:
        >>> as_bytes(np.array([0.0, 0.25, 1.0, np.nan]))
        array([  0, 127, 254, 255], dtype=uint8)
    """
    known = np.isfinite(values)
    roots = np.sqrt(np.clip(np.where(known, values, 0.0), 0.0, 1.0))
    return np.where(known, np.rint(_LARGEST * roots), _ABSENT).astype(np.uint8)


@dataclass(eq=False)
class AttentionPatterns:
    """Attention of the heads of one stack on one sequence of the probe, pooled.

    The n real tokens of the sequence are divided in order into min(n, 32) blocks; a cell is the mean, over
    the queries of a block, of their attention to all keys of a block. Up to 32 tokens have a cell each.

    Args:
        codes: [layer, head, query block, key block] bytes, see :func:`as_bytes`.
        lengths: [layer] n, which is 0 for a layer without a pattern.
        tokens: The n tokens as the tokenizer writes them, or their ids (``#101``); empty where the model is
            given no ids.

    Example:
        >>> attention = np.array([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> patterns = AttentionPatterns(as_bytes(attention), np.array([2]), ("[CLS]", "hello"))
        >>> patterns.values(layer=0, head=0).round(2).tolist(), patterns.tokens[1]
        ([[1.0, 0.0], [0.25, 0.75]], 'hello')
    """

    codes: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = self.codes.shape
        if self.codes.dtype != np.uint8 or len(shape) != 4 or shape[2] != shape[3]:
            raise ArgumentError(
                "Expected `codes` to be bytes [layer, head, cell, cell] but got "
                f"{self.codes.dtype} {list(shape)}."
            )
        if self.lengths.shape != shape[:1]:
            raise ArgumentError(
                f"Expected `lengths` of {shape[0]} layers but got shape {list(self.lengths.shape)}."
            )

    def values(self, layer: int, head: int) -> NDArray[np.float32]:
        """Return a head's attention [query block, key block]; NaN where it has none."""
        side = min(int(self.lengths[layer]), self.codes.shape[2])
        codes = self.codes[layer, head, :side, :side]
        return np.where(codes == _ABSENT, np.nan, np.square(codes / np.float32(_LARGEST)))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is stored, by name; the reverse of :meth:`of`."""
        stored: dict[str, NDArray[Any]] = {
            "attention": self.codes,
            "lengths": self.lengths.astype(np.float32),
        }
        return stored | ({"tokens": np.array(self.tokens, np.str_)} if self.tokens else {})

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> AttentionPatterns:
        """Return the patterns of stored arrays.

        Raises:
            KeyError: If one is missing.
            ValueError: If one does not fit.
        """
        tokens = tuple(map(str, arrays["tokens"].ravel())) if "tokens" in arrays else ()
        return cls(arrays["attention"], arrays["lengths"].astype(np.int64), tokens)
