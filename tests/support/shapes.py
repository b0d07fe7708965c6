"""Checks every call in the rooms whose signatures name shapes, while tests of these rooms run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import jaxtyping
    from beartype import BeartypeConf, beartype
except ImportError:  # on a borrowed machine with a GPU, say: shapes are not checked there
    jaxtyping = None

ROOMS = Path(__file__).parents[2] / "lightning_geo"

#: Triton reads the source of its kernels, and the dispatch only passes arguments on: no hook on either. There
#: is none on helpers that take tensors of any shape, either: they are called most.
MODULES = (
    "lightning_geo.functional",
    *(
        f"lightning_geo.kernels.{file.stem}"
        for file in (ROOMS / "kernels").glob("[a-z]*.py")
        if file.stem not in ("precision", "workspace")
    ),
    *(
        f"lightning_geo.kernels.triton.{file.stem}"
        for file in (ROOMS / "kernels" / "triton").glob("[a-z]*.py")
        if "import triton" not in file.read_text()
    ),
)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments with beartype; an int may stand for a float."""
    for name, hint in function.__annotations__.items():
        if getattr(hint, "_is_protocol", False):  # a check would read every property of what is observed
            function.__annotations__[name] = Any
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


def install() -> None:
    """Hook the import of the modules, before the first of them is imported; nothing is checked yet."""
    if jaxtyping is None:
        return
    jaxtyping.install_import_hook(MODULES, "support.shapes.checked")
    jaxtyping.config.update("jaxtyping_disable", True)


@contextmanager
def shape_checks(on: bool) -> Iterator[None]:
    """Switch the checks on or off."""
    if jaxtyping is None:
        yield
        return
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", not on)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
