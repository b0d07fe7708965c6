"""What is public is listed: every module's ``__all__`` is true."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_geo

ROOT = Path(lightning_geo.__file__).parent
MODULES = {
    ".".join(("lightning_geo", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Those at the level of the module, within conditions, too."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop(0)
        yield statement
        if isinstance(statement, (ast.If, ast.Try, ast.With)):
            waiting += [child for child in ast.walk(statement) if isinstance(child, ast.stmt)][1:]


def defined(statement: ast.stmt) -> list[str]:
    """The names that a statement defines, imports left out."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def listed(tree: ast.Module) -> set[str] | None:
    """``__all__``, or None where there is none."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and defined(statement) == ["__all__"]:
            return set(ast.literal_eval(statement.value))
    return None


def faults(name: str, source: str, others: dict[str, set[str] | None]) -> list[str]:
    """What a module defines without listing it, and what it takes of others that they do not list."""
    tree = ast.parse(source)
    public = {x for statement in statements(tree) for x in defined(statement) if not x.startswith("_")}
    found = [f"{name} defines {x}" for x in sorted(public - (listed(tree) or set()))]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in others:
            names = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in others}
            found += [
                f"{name} takes {x} from {node.module}" for x in sorted(names - (others[node.module] or set()))
            ]
    return found


@pytest.fixture(scope="module")
def lists() -> dict[str, set[str] | None]:
    found = {name: listed(ast.parse(path.read_text())) for name, path in MODULES.items()}
    return found | {"lightning_geo._version": {"__version__"}}


def test_every_module_lists_what_it_defines_and_others_take(lists: dict[str, set[str] | None]) -> None:
    assert len(MODULES) > 300
    found = [fault for name, path in MODULES.items() for fault in faults(name, path.read_text(), lists)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def shown(): ...", "here defines shown"),
        ("__all__ = []\nif True:\n    LIMIT: int = 1", "here defines LIMIT"),
        ("__all__ = ['Kept']\nclass Kept: ...\nclass Other: ...", "here defines Other"),
        (
            "from lightning_geo.utils.errors import _drop_frames",
            "takes _drop_frames from lightning_geo.utils.errors",
        ),
    ],
)
def test_the_test_above_can_fail(source: str, fault: str, lists: dict[str, set[str] | None]) -> None:
    (found,) = faults("here", source, lists)
    assert fault in found
