"""Select the modules of a LightningModule to observe."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from torch import nn

from lightning_geo.observe.layers.numbering import clean_name, name_of
from lightning_geo.observe.replay.torchscript import is_scripted
from lightning_geo.utils.errors import SettingError, SettingTypeError

__all__ = ["ITSELF", "candidates", "check_layers", "choose"]

#: The LightningModule's own forward, among its children's names.
ITSELF = ""


def candidates(root: nn.Module, module: str | None) -> dict[str, nn.Module]:
    """Return the modules that may be observed: the named one, or the direct children and the root itself.

    Raises:
        SettingError: If ``module`` names no module, or one that cannot be observed.
    """
    if module is not None:
        named = dict(root.named_modules())
        if module not in named:
            near = difflib.get_close_matches(module, [n for n in named if n], n=3)
            raise SettingError(
                f"Expected `module` to name a module of {type(root).__name__} but got {module!r}. "
                f"Nearest names: {near or sorted(dict(root.named_children()))}."
            )
        if is_scripted(named[module]):
            raise SettingError(
                f"Expected `module` to name a module that runs in Python but {module!r} is TorchScript, "
                "which hides its inside."
            )
        return {ITSELF: named[module]}
    children = {
        name: child
        for name, child in root.named_children()
        if any(child.children()) and not is_scripted(child)
    }
    return {**children, ITSELF: root}


def choose(observed: Iterable[str]) -> list[str]:
    """Choose among the candidates that showed attention those to observe from now on.

    A single child is the model. With several children, the root's own forward is better if it was called:
    only there do the children feed each other.
    """
    names = list(observed)
    children = [name for name in names if name != ITSELF]
    return children if len(children) == 1 or ITSELF not in names else [ITSELF]


def check_layers(layers: int | str | Sequence[int] | None, *roots: nn.Module) -> None:
    """Check ``layers`` as far as possible before the model has run.

    Args:
        layers: The argument of the monitor or of ``measure``.
        roots: Modules from which paths may start.

    Raises:
        SettingError: If it is no valid pattern, or matches no module name.
        SettingTypeError: If it is neither a pattern nor layer indices.
    """
    if layers is None:
        return
    if isinstance(layers, str):
        try:
            pattern = re.compile(layers)
        except re.error as error:
            raise SettingError(
                f"Expected `layers` to be a regular expression but {layers!r} is none: {error}."
            ) from error
        names = [name_of(clean_name(name), root) for root in roots for name, _ in root.named_modules()]
        if not any(map(pattern.search, names)):
            raise SettingError(
                f"Expected `layers` to match the name of a module but {layers!r} matches none of "
                f"{len(names)}, such as {names[-1]!r}."
            )
        return
    indices = layers if isinstance(layers, (list, tuple, range, set)) else [layers]
    if not indices or not all(isinstance(i, int) and i >= 0 for i in indices):
        raise SettingTypeError(
            f"Expected `layers` to be a pattern or layer indices from 0 on but got {layers!r}."
        )
