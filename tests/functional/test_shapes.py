"""Shapes in signatures are checked in the tests of this room, and cost users nothing."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from lightning_geo.functional import mean_cosine
from lightning_geo.functional._tensors import shannon_entropy
from lightning_geo.kernels import AttentionProblem
from lightning_geo.kernels.vectors import sum_directions
from lightning_geo.utils import shapes
from support.shapes import MODULES

ROOT = Path(__file__).parents[2]
FILES = [path for room in ("functional", "kernels") for path in (ROOT / "lightning_geo" / room).rglob("*.py")]


def annotations(source: str) -> Iterator[tuple[int, ast.expr]]:
    """What functions take and return, and the fields of classes, with their lines."""
    for node in ast.walk(ast.parse(source)):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.FunctionDef):
            found = [node.returns, *(a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg))]
        elif isinstance(node, ast.ClassDef):
            found = [item.annotation for item in node.body if isinstance(item, ast.AnnAssign)]
        yield from ((x.lineno, x) for x in found if x is not None)


def has_bare_tensor(annotation: ast.AST) -> bool:
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in shapes.__all__:
        return False
    if isinstance(annotation, ast.Name):
        return annotation.id == "Tensor"
    return any(map(has_bare_tensor, ast.iter_child_nodes(annotation)))


def test_a_wrong_shape_is_refused():
    """None of these functions checks what it is given here: the signature does."""
    x = torch.randn(2, 3, 4)
    with pytest.raises(jaxtyping.TypeCheckError, match="'norm'"):
        sum_directions(x, x.norm(dim=-1)[:, :2], None)
    with pytest.raises(jaxtyping.TypeCheckError, match="'p'"):
        shannon_entropy(torch.tensor(1.0))


def test_a_wrong_field_is_refused():
    query = torch.randn(2, 4, 5, 8)
    AttentionProblem(query, query[:, :2], 1.0)
    with pytest.raises(jaxtyping.TypeCheckError, match="'key'"):
        AttentionProblem(query, query[..., :7], 1.0)


@pytest.mark.wrong_arguments
def test_the_marker_leaves_the_message_to_the_function():
    with pytest.raises(ValueError, match=r"`x` to have shape"):
        mean_cosine(torch.ones(3))


def test_every_tensor_in_a_signature_has_a_shape():
    bare = [
        f"{path.relative_to(ROOT)}:{line}: {ast.unparse(annotation)}"
        for path in FILES
        for line, annotation in annotations(path.read_text())
        if has_bare_tensor(annotation)
    ]
    assert not bare, 'Name their axes, or write " ..." for any:\n' + "\n".join(bare)


def test_every_annotation_can_be_evaluated():
    """One that cannot is silently not checked: ``Float[Tensor, ...]``, where jaxtyping wants quotes."""
    broken = []
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not name.startswith(MODULES):
            continue
        names = vars(importlib.import_module(name))
        for line, annotation in annotations(path.read_text()):
            try:
                eval(ast.unparse(annotation), names)
            except Exception as error:
                broken.append(f"{name}:{line}: {ast.unparse(annotation)}: {error}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("source", "bare"),
    [
        ("def f(x: Tensor | None): ...", 1),
        ("def f(*x: Float[Tensor, ' n'], **y: Tensor) -> dict[str, Tensor]: ...", 2),
        ("class A:\n    x: Callable[..., Tensor]\n    def f(self, y: int): z: Tensor = y", 1),
    ],
)
def test_the_search_for_tensors_without_a_shape_finds_them(source: str, bare: int):
    assert sum(has_bare_tensor(annotation) for _, annotation in annotations(source)) == bare


def test_users_load_neither_jaxtyping_nor_beartype():
    program = """if True:
        import sys, typing
        from torch import Tensor
        import lightning_geo.functional as functional
        assert not {"jaxtyping", "beartype"} & set(sys.modules)
        hints = typing.get_type_hints(functional.mean_cosine)
        assert hints["return"] is Tensor, hints
    """
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
