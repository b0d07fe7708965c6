"""What one row of the tester's table says of a function, and the arguments that are drawn for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Arguments = tuple[Any, ...]
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *HALF)


@dataclass
class Draw:
    """Random arguments.

    Args:
        rng: Where they come from.
        lead: Sizes of the leading axes.
        dtype: Of all tensors that are floating point.
        keep: Share of the tokens that are not masked.
        poison: What masked tokens are; None leaves them as they are drawn.
        clean: Draw no zero vectors, whose length has no derivative.
    """

    rng: np.random.Generator
    lead: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float64
    keep: float = 1.0
    poison: float | None = None
    clean: bool = False

    @classmethod
    def of(cls, seed: int, **options: Any) -> Draw:
        return cls(np.random.default_rng(seed), **options)

    def size(self, low: int, high: int) -> int:
        """Between ``low`` and ``high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values)).to(self.dtype)

    def normal(self, *shape: int, mean: float = 0.0) -> Tensor:
        """``[*lead, *shape]``."""
        return self.tensor(self.rng.normal(mean, 1.0, (*self.lead, *shape)))

    def gamma(self, *shape: int, concentration: float = 1.0) -> Tensor:
        """``[*lead, *shape]``, not negative."""
        return self.tensor(self.rng.gamma(concentration, size=(*self.lead, *shape)))

    def tokens(self, n: int, d: int) -> Tensor:
        """``[*lead, n, d]`` with a common offset; some are zero."""
        x = self.normal(n, d) + self.tensor(self.rng.normal(size=d) * self.rng.uniform(0, 3))
        if not self.clean:
            x[torch.tensor(self.rng.random(x.shape[:-1]) < 0.1)] = 0
        return x

    def mask(self, n: int) -> Tensor:
        """Boolean ``[*lead, n]``."""
        return torch.tensor(self.rng.random((*self.lead, n)) < self.keep)

    def poisoned(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x`` with the poison where ``mask``, of its rank, is False."""
        return x if self.poison is None else torch.where(mask, x, self.poison)

    def basis(self, d: int, r: int) -> Array:
        """``[*lead, d, r]`` with orthonormal columns."""
        return np.linalg.qr(self.rng.normal(size=(*self.lead, d, r)))[0]

    def rotation(self, d: int) -> Tensor:
        return torch.tensor(np.linalg.qr(self.rng.normal(size=(d, d)))[0]).to(self.dtype)

    def order(self, n: int) -> Tensor:
        return torch.tensor(self.rng.permutation(n))


@dataclass(frozen=True)
class Row:
    """One function.

    Args:
        function: Tensors in, a tensor or a tuple of them out.
        draw: Makes its arguments. Tensors have the leading axes of the draw, but for the ``shared`` ones; an
            array is for the definition alone.
        reference: The definition, for one item of the leading axes: the same arguments as float64 arrays, the
            value out.
        axes: How many leading axes it takes: any number (None), or just that many.
        masks: Positions of the arguments that say which tokens are real.
        tolerance: Absolute and relative, of float64 inputs and of all others.
        shared: Positions of the arguments without leading axes.
        gradient: Whether the result has one; None where nothing is promised.
        differentiable: The part of the function whose gradient is checked, of smooth arguments.
        zeros: Arguments that are zero in places where a careless gradient is not finite.
        undefined: Arguments for which the result is NaN.
        gradient_of_nan: Whether the gradient is finite there.
        broken: Positions of the arguments whose values that are not finite make the result so; None for all.
        infinite: Whether an infinite argument, too, makes its item's value not finite.
        unchanged: Description -> what changes the arguments and leaves the result, or tells the new one.
        dtypes: In which the arguments still are what they have to be.
        result: Its type; None for float32, or float64 for float64 inputs.
        autocast: Whether it may be called under autocast; else its caller switches that off.
        examples: How many examples are drawn in the usual run; others draw more in proportion.
    """

    function: Callable[..., Any]
    draw: Callable[[Draw], Arguments]
    reference: Callable[..., Any]
    axes: int | None = None
    masks: tuple[int, ...] = ()
    tolerance: tuple[float, float] = (1e-9, 2e-5)
    shared: tuple[int, ...] = ()
    gradient: bool | None = True
    differentiable: Callable[..., Any] | None = None
    zeros: Sequence[Arguments] = ()
    undefined: Sequence[Arguments] = ()
    gradient_of_nan: bool = True
    broken: tuple[int, ...] | None = None
    infinite: bool = True
    unchanged: dict[str, Callable[..., Any]] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = DTYPES
    result: torch.dtype | None = None
    autocast: bool = True
    examples: int = 60

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        result = self.function(*arguments)
        return result if isinstance(result, tuple) else (result,)

    def lead(self, *sizes: int) -> tuple[int, ...]:
        """As many of the sizes as it takes."""
        return sizes if self.axes is None else (*sizes, 2, 2)[: self.axes]

    def example(self, seed: int = 0, lead: tuple[int, ...] = (2,), **options: Any) -> Arguments:
        return self.draw(Draw.of(seed, lead=self.lead(*lead), **options))

    def item(self, arguments: Arguments, where: tuple[int, ...]) -> list[Any]:
        """The arguments of one item, as arrays."""
        items = (
            a if place in self.shared or not isinstance(a, (Tensor, np.ndarray)) else a[where]
            for place, a in enumerate(arguments)
        )
        return [as_array(a) if isinstance(a, Tensor) else a for a in items]


def as_array(x: Tensor) -> Array:
    return (x.double() if x.is_floating_point() else x).detach().numpy()


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def map_floats(function: Callable[[Tensor], Any], arguments: Arguments) -> Arguments:
    return tuple(function(a) if is_float(a) else a for a in arguments)
