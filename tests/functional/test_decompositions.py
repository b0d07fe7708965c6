"""Matrices are decomposed on the host, in parts, as if they were decomposed at once."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import lightning_geo
from lightning_geo.functional._decompositions import by_lapack, dividing_among_threads, in_threads

LAPACK = {"cholesky_ex", "eig", "eigh", "eigvals", "eigvalsh", "qr", "svd", "svdvals"}


@pytest.mark.parametrize("count", [1, 3, 17])
def test_parts_are_those_of_the_whole(count: int) -> None:
    x = torch.randn(count, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, vectors = in_threads(torch.linalg.eigh, x @ x.mT)
    together = vectors * values[:, None] @ vectors.mT
    np.testing.assert_allclose(together, x @ x.mT, atol=1e-12)
    np.testing.assert_allclose(
        in_threads(torch.linalg.svdvals, x), np.linalg.svd(x.numpy(), compute_uv=False), rtol=1e-12
    )


def test_what_lies_on_the_host_is_decomposed_as_it_is() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(by_lapack(torch.linalg.svdvals, x), torch.linalg.svdvals(x))


def test_what_came_from_a_device_is_divided_among_threads() -> None:
    x, threads = torch.randn(3, 5, 4, 4, dtype=torch.float64), set()

    def decompose(matrices: torch.Tensor) -> torch.Tensor:
        threads.add(threading.get_ident())
        return torch.linalg.svdvals(matrices)

    with dividing_among_threads():
        values = by_lapack(decompose, x)
    assert threading.get_ident() not in threads
    with dividing_among_threads(divides=False):
        by_lapack(decompose, x)
    assert threading.get_ident() in threads
    torch.testing.assert_close(values, torch.linalg.svdvals(x))


def test_nothing_else_decomposes_where_matrices_may_lie_on_a_device() -> None:
    """A call of LAPACK's names is an argument of `by_lapack`, or inside a function that is one."""
    found = []
    root = Path(lightning_geo.__file__).parent
    for room in ("functional", "measurement"):
        for file in (root / room).rglob("*.py"):
            tree = ast.parse(file.read_text())
            handed = {
                name.id
                for call in ast.walk(tree)
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "by_lapack"
                for name in call.args
                if isinstance(name, ast.Name)
            }
            handed |= {"_symmetric_sizes", "_sizes"} if file.stem == "score_spectra" else set()
            for function in (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)):
                called = {
                    c.func.attr
                    for c in ast.walk(function)
                    if isinstance(c, ast.Call) and isinstance(c.func, ast.Attribute)
                }
                if called & LAPACK and function.name not in handed:
                    found.append((file.name, function.name, called & LAPACK))
    assert not found
