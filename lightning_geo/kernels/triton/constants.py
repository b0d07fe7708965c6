"""Constants that a kernel is compiled for, besides the rules of its masks: one constexpr argument each.

This module loads without Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Dots", "Planes", "Sums"]


@dataclass(frozen=True)
class Dots:
    """How vectors are read and multiplied.

    Args:
        width: Features of a head.
        blocks: One or two powers of two, the larger first, that hold them: 80 features are 64 and 16, not
            128.
        upcast: Vectors are converted to float32 when they are loaded.
        precision: How ``tl.dot`` multiplies float32.
    """

    width: int
    blocks: tuple[int, ...]
    upcast: bool
    precision: str

    @classmethod
    def of(cls, width: int, upcast: bool, dtype: torch.dtype) -> Dots:
        """Derive them from the width of a head and the type of the dot products."""
        whole, half = _power(width), _power(width) // 2
        rest = _power(width - half)
        # below 64 features a second block saves nothing
        blocks = (half, rest) if half >= 64 and rest < half else (whole,)
        # three TF32 products keep float32's digits on tensor cores
        return cls(width, blocks, upcast, "tf32x3" if dtype == torch.float32 else "tf32")

    @property
    def held(self) -> int:
        """``width``, rounded up to what the blocks hold."""
        return sum(self.blocks)

    @property
    def split(self) -> bool:
        """Whether there are two blocks."""
        return len(self.blocks) == 2


def _power(width: int) -> int:
    """The power of two at or above a width, 16 at least."""
    return max(16, 1 << (width - 1).bit_length())


@dataclass(frozen=True)
class Planes:
    """Index of each statistic's plane in the kernel's output; -1 for a statistic that was not requested."""

    visible_keys: int = -1
    logsumexp: int = -1
    entropy: int = -1
    concentration: int = -1
    max_probability: int = -1
    max_logit: int = -1
    self_mass: int = -1
    previous_mass: int = -1
    next_mass: int = -1
    first_mass: int = -1
    backward_mass: int = -1
    forward_mass: int = -1
    attention_distance: int = -1
    special_mass: int = -1
    learned_sink_mass: int = -1

    @property
    def singles(self) -> bool:
        """Whether the mass on any single key was requested."""
        return max(self.self_mass, self.previous_mass, self.next_mass, self.first_mass) >= 0


@dataclass(frozen=True)
class Sums:
    """Index of each number that the pass over keys leaves of a row; -1 for one that no statistic needs.

    Their order and meaning are those of the state in rows.py.
    """

    peak: int
    total: int
    moment: int
    squares: int
    before: int
    after: int
    distance: int
    marked: int

    @classmethod
    def of(cls, planes: Planes, causal: bool) -> Sums:
        """Number what the planes need; under causality nothing lies after a row."""
        needed = [
            True, True, True, planes.concentration >= 0, planes.backward_mass >= 0,
            planes.forward_mass >= 0 and not causal, planes.attention_distance >= 0, planes.special_mass >= 0,
        ]  # fmt: skip
        return cls(*(sum(needed[:i]) if need else -1 for i, need in enumerate(needed)))

    @property
    def count(self) -> int:
        """The number of sums."""
        return 1 + int(max(vars(self).values()))

    @property
    def placed(self) -> bool:
        """Whether it matters on which side of a row a key lies, and how far away."""
        return max(self.before, self.after, self.distance) >= 0
