"""The tester that every metric passes through, and what one row of its table says.

A :class:`Row` names a function, draws arguments for it and defines it once more, for one item and in float64.
From that the tester checks the function against its definition over leading axes, types and masks, and checks
what all functions promise. :mod:`functional.test_metrics` lists the checks.
"""

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


def check_definition(row: Row, draw: Draw, within: tuple[float | None, float | None] = (None, None)) -> None:
    """Every item has the value of its definition, in the type and range promised; arguments stay."""
    arguments = row.draw(draw)
    copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    results = row(*arguments)
    for now, before in zip(arguments, copies, strict=True):
        if isinstance(now, Tensor):
            torch.testing.assert_close(now, before, rtol=0, atol=0, equal_nan=True)
    for result in results:
        assert result.shape[: len(draw.lead)] == draw.lead
        assert result.dtype == (row.result or torch.promote_types(draw.dtype, torch.float32))
        assert result.device == torch.device("cpu")
        finite, (low, high) = result[result.isfinite()], within
        assert low is None or (finite >= low).all()
        assert high is None or (finite <= high).all()
    tolerance = row.tolerance[draw.dtype != torch.float64]
    for where in np.ndindex(*draw.lead):
        expected = row.reference(*row.item(arguments, where))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for result, value in zip(results, expected, strict=True):
            assert result[where].shape == np.shape(value)
            np.testing.assert_allclose(as_array(result[where]), value, rtol=tolerance, atol=tolerance)


def check_sequences_apart(row: Row) -> None:
    """In another order, or a part at a time, sequences have the same values."""
    arguments = row.example(lead=(4,), keep=0.7)
    order = torch.tensor([2, 0, 3, 1])

    def of(index: Tensor) -> tuple[Tensor, ...]:
        return row(
            *(
                a[index] if isinstance(a, Tensor) and i not in row.shared else a
                for i, a in enumerate(arguments)
            )
        )

    whole = row(*arguments)
    parts = zip(of(torch.tensor([0])), of(torch.tensor([1, 2, 3])), strict=True)
    for one, moved, (first, rest) in zip(whole, of(order), parts, strict=True):
        for other in (moved[order.argsort()], torch.cat([first, rest])):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9, equal_nan=True)


def check_masked(row: Row) -> None:
    """What is masked has no influence, whatever it holds, and would have one if it were not masked."""
    options = {"keep": 0.6, "clean": True, "dtype": torch.float32}
    arguments = row.example(**options)
    expected = row(*arguments)
    assert not any(arguments[place].all() for place in row.masks)
    for bad in (torch.nan, torch.inf, -torch.inf):
        for got, value in zip(row(*row.example(poison=bad, **options)), expected, strict=True):
            torch.testing.assert_close(got, value, rtol=0, atol=0, equal_nan=True)
    seen = row(*(torch.ones_like(a) if place in row.masks else a for place, a in enumerate(arguments)))
    pairs = zip(seen, expected, strict=True)
    assert any(not torch.equal(got.nan_to_num(), value.nan_to_num()) for got, value in pairs)


def check_autocast(row: Row) -> None:
    """Autocast changes nothing."""
    arguments = row.example(dtype=torch.float32, clean=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = row(*arguments)
    for got, value in zip(inside, row(*arguments), strict=True):
        assert got.dtype == (row.result or torch.float32)
        torch.testing.assert_close(got, value, rtol=0, atol=0, equal_nan=True)


def check_half(row: Row, dtype: torch.dtype) -> None:
    """Inputs in half precision are widened before anything is computed of them."""
    half = row.example(dtype=dtype, clean=True)
    results = row(*half)
    for got, value in zip(results, row(*map_floats(Tensor.float, half)), strict=True):
        assert got.dtype == (row.result or torch.float32)
        assert got.isfinite().any()
        torch.testing.assert_close(got, value, rtol=0, atol=0, equal_nan=True)


def check_gradient(row: Row) -> None:
    """Gradients are right, and finite at zeros; or there is none."""
    arguments = map_floats(lambda a: a.requires_grad_(), row.example(clean=True))
    if not row.gradient:
        assert not any(result.requires_grad for result in row(*arguments))
        return
    assert torch.autograd.gradcheck(row.differentiable or row.function, arguments)
    for given in row.zeros:
        given = map_floats(lambda a: a.clone().requires_grad_(), given)
        total = sum(result.sum() for result in row(*given))
        for gradient in torch.autograd.grad(total, [a for a in given if is_float(a)]):
            assert gradient.isfinite().all()


def check_undefined(row: Row) -> None:
    """NaN where the metric is not defined; what is finite has a finite gradient there."""
    for given in row.undefined:
        given = map_floats(lambda a: a.clone().requires_grad_(bool(row.gradient)), given)
        inputs = [a for a in given if is_float(a) and a.isfinite().all()]
        for result in row(*given):
            assert result.isnan().all()
            if row.gradient and row.gradient_of_nan and inputs:
                for gradient in torch.autograd.grad(result.sum(), inputs, retain_graph=True):
                    assert gradient.isfinite().all()


def check_broken(row: Row) -> None:
    """A value that is not finite stays visible in its own item, and changes no other."""
    before = row(*row.example(lead=(3,), clean=True))
    floats = [
        place for place, a in enumerate(row.example(lead=(3,))) if is_float(a) and place not in row.shared
    ]
    for place in floats if row.broken is None else row.broken:
        for bad in (torch.nan, torch.inf)[: 1 + row.infinite]:
            arguments = list(row.example(lead=(3,), clean=True))
            arguments[place][1].view(-1)[0] = bad
            for got, value in zip(row(*arguments), before, strict=True):
                assert value.isfinite().all()
                assert not got[1].isfinite().all()
                others = torch.tensor([0, 2])
                torch.testing.assert_close(got[others], value[others], rtol=1e-12, atol=1e-12)


def check_unchanged(row: Row, what: str, seed: int) -> None:
    """What must not matter does not."""
    draw = Draw.of(seed, lead=row.lead(2), clean=True)
    arguments = row.draw(draw)
    before = row(*arguments)
    moved = row.unchanged[what](draw, *arguments)
    if isinstance(moved, tuple) and len(moved) == 2 and callable(moved[1]):
        moved, expect = moved
        before = tuple(expect(value) for value in before)
    for got, value in zip(row(*moved), before, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-6, atol=1e-7, equal_nan=True)
