"""Private names of torch, Lightning, transformers and TensorBoard stand in one place per package.

Whoever updates one of these packages has one file, or for torch one folder, to check; each name there says on
which versions it works.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

import lightning_geo

ROOT = Path(lightning_geo.__file__).parent
FILES = {f"utils/_{package}.py" for package in ("deepspeed", "lightning", "tensorboard", "transformers")} | {
    f"utils/_torch/{path.name}"
    for path in (ROOT / "utils" / "_torch").glob("*.py")
    if path.name != "__init__.py"
}
PACKAGES = (
    "torch", "lightning", "pytorch_lightning", "lightning_fabric", "transformers", "accelerate",
    "tensorboard", "tensorboardX", "deepspeed",
)  # fmt: skip
#: Names without an underscore that an update may take away as well: nobody documents them.
FRAGILE = {
    "AttentionInterface", "ALL_ATTENTION_FUNCTIONS", "Conv1D", "DeepSpeedEngine", "DeepSpeedStrategy",
    "DisableTorchFunction", "WandbCallback", "callback_handler", "tb_writer",
    "FSDPStrategy", "ModelParallelStrategy", "autocast_decrement_nesting", "autocast_increment_nesting",
    "batch_progress", "flex_attention_hop", "fp32_precision", "get_interface",
    "noop_mask", "setup_compilation_env", "wrapped_forward",
}  # fmt: skip
#: Private attributes of what we are handed: ours of the same name are ours on `self` alone.
THEIRS = {
    name for kind in (torch.Tensor, torch.nn.Module, LightningModule, Trainer) for name in dir(kind)
} | {
    *dir(torch.nn.Module()),
    *dir(LightningModule()),
}
#: Documented by Python in spite of their underscore.
OF_PYTHON = {"_asdict", "_fields", "_getframe", "_replace"}
#: Text that looks like a name: ends of names of our own.
TEXT = {"_mask", "_value_angle"}


def is_private(name: str) -> bool:
    return bool(re.fullmatch(r"_(?!_)\w+", name))


def of_them(path: str) -> bool:
    return path.partition(".")[0] in PACKAGES


def own_names(tree: ast.Module) -> Iterator[str]:
    """Private attributes that a file defines: of its classes, of their instances, and of errors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield item.name
                elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield item.target.id
                elif isinstance(item, ast.Assign):
                    yield from (target.id for target in item.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            kept = ast.unparse(node.value) in ("self", "cls") or node.attr.startswith("_lightning_geo")
            yield from [node.attr] if kept else []


def private_names(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Lines of a file that use a private or fragile name which is not ours."""
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    # a TypeVar repeats its own name
    pieces |= {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "TypeVar"
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            ours = own if ast.unparse(node.value) in ("self", "cls") else own - THEIRS
            names = [node.attr] if node.attr not in ours | OF_PYTHON else []
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            paths = [".".join([*module, alias.name]) for alias in node.names]
            names = [n for path in paths if of_them(path) for n in path.split(".")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            text = node.value
            if text.isidentifier():
                names = [text] if text not in (own - THEIRS) | TEXT else []
            elif re.fullmatch(r"\w+(\.\w+)+", text) and of_them(text):
                names = text.split(".")
        for name in names:
            if is_private(name) or name in FRAGILE:
                yield f"{node.lineno}: {name}"  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Each file of the package, parsed."""
    files = sorted(ROOT.rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}


@pytest.fixture(scope="module")
def own(trees: dict[str, ast.Module]) -> set[str]:
    """The private names that the package defines."""
    return {name for tree in trees.values() for name in own_names(tree) if is_private(name)}


def test_no_other_file_uses_them(trees: dict[str, ast.Module], own: set[str]) -> None:
    found = [
        f"{path}:{line}"
        for path, tree in trees.items()
        if path not in FILES
        for line in private_names(tree, own)
    ]
    assert not found, "belongs into one of lightning_geo/utils/_*.py or _torch/*.py: " + ", ".join(found)


@pytest.mark.parametrize("path", sorted(FILES))
def test_the_files_that_may_do_so(path: str, trees: dict[str, ast.Module], own: set[str]) -> None:
    assert list(private_names(trees[path], own)), "nothing private is left in it"


@pytest.mark.parametrize(
    "line",
    [
        "x._version",
        "module._compiled_call_impl = None",
        "self._generate_state_key(name=name)",
        "trainer.fit_loop._should_accumulate()",
        "trainer.fit_loop.epoch_loop.batch_progress.total",
        "getattr(model, '_orig_mod', model)",
        "vars(module).get('_trainer')",
        "function.__name__ == 'wrapped_forward'",
        "names = ('FSDPStrategy',)",
        "from torch.overrides import _get_current_function_mode",
        "def f(): import torch._dynamo",
        "'torch._dynamo' in sys.modules",
        "with torch._C.DisableTorchFunction(): pass",
        "from torch._C import DisableTorchFunction as Without",
        "AttentionInterface = library.AttentionInterface",
    ],
)
def test_the_test_above_can_fail(line: str, own: set[str]) -> None:
    assert list(private_names(ast.parse(line), own))


@pytest.mark.parametrize(
    "line",
    [
        "class A:\n    def f(self): self._mine = self._f()\n    def _f(self): return 1",
        "row._replace(layer=1)",
        "frame = sys._getframe(1)",
        "f'{name}_attention_mask'",
        "type(x).__name__",
        "from __future__ import annotations",
        "from lightning_geo.utils._torch import version_of",
        "def f():\n    '''Relies on ``Tensor._version``.'''",
    ],
)
def test_what_is_ours_is_free(line: str) -> None:
    tree = ast.parse(line)
    assert not list(private_names(tree, {*own_names(tree)}))


@pytest.mark.parametrize("path", sorted(FILES))
def test_each_function_says_what_it_was_checked_on(path: str, trees: dict[str, ast.Module]) -> None:
    silent = []
    for node in trees[path].body:
        if isinstance(node, ast.FunctionDef) and not is_private(node.name):
            said = " ".join((ast.get_docstring(node) or "").split())
            if not re.search(r"Relies on .*; checked on \w+ \d+\.\d+\.\d+", said):
                silent.append(node.name)
    assert not silent


@pytest.mark.parametrize("path", sorted(FILES))
def test_they_import_nothing_of_ours(path: str, trees: dict[str, ast.Module]) -> None:
    assert "lightning_geo" not in {
        name.split(".")[0]
        for node in ast.walk(trees[path])
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
