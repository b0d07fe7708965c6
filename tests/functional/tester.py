"""The tester that every metric passes through.

A :class:`~functional.row.Row` names a function, draws arguments for it and defines it once more, for one item
and in float64. From that the tester checks the function against its definition over leading axes, types and
masks, and checks what all functions promise. :mod:`functional.test_metrics` lists the checks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from functional.row import Draw, Row, as_array, is_float, map_floats


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
            rounding = 1e-9 if one.dtype == torch.float64 else 2e-7
            torch.testing.assert_close(other, one, rtol=rounding, atol=rounding, equal_nan=True)


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
