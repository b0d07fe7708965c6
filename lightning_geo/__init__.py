"""Watch the geometry of attention while a transformer trains.

Importing the package loads neither torch nor Lightning: its public names are resolved at first use, so that
TensorBoard, which imports the package at every start, and readers of runs stay quick.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_geo import functional
    from lightning_geo.attribution import explain
    from lightning_geo.history import GeometryHistory, load_history
    from lightning_geo.measure import measure
    from lightning_geo.monitor import GeometryMonitor
    from lightning_geo.pruned import apply_plan
    from lightning_geo.pruning import PruningPlan, pruning_plan
    from lightning_geo.schema import GeometryRecord
    from lightning_geo.silencing import evaluate_plan

__all__ = [
    "GeometryHistory",
    "GeometryMonitor",
    "GeometryRecord",
    "PruningPlan",
    "apply_plan",
    "evaluate_plan",
    "explain",
    "functional",
    "load_history",
    "measure",
    "pruning_plan",
]

__version__ = "0.1.0"

_HOMES = {
    "GeometryHistory": "history",
    "GeometryMonitor": "monitor",
    "GeometryRecord": "schema",
    "PruningPlan": "pruning",
    "apply_plan": "pruned",
    "evaluate_plan": "silencing",
    "explain": "attribution",
    "load_history": "history",
    "measure": "measure",
    "pruning_plan": "pruning",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        if name == "GeometryMonitor":
            # not kept here: a LightningCLI imported since asks whether it is a callback of its own kind
            importlib.import_module(f"{__name__}.lightning").adopt()
        return getattr(home, name)
    if name == "functional":
        return importlib.import_module(f"{__name__}.functional")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """Keeps ``lightning_geo.measure`` the function, also once the module of that name is imported."""

    @property
    def measure(self) -> Any:
        return __getattr__("measure")

    @measure.setter
    def measure(self, submodule: ModuleType) -> None:
        """The import system binds submodules to their package; this one is found in ``sys.modules``."""


sys.modules[__name__].__class__ = _Package
