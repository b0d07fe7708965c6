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
    from lightning_geo.analysis.pruning import PruningPlan, pruning_plan
    from lightning_geo.interventions.ablation import evaluate_plan
    from lightning_geo.interventions.explanation import explain
    from lightning_geo.interventions.head_removal import apply_plan
    from lightning_geo.measurement.sample import measure
    from lightning_geo.metrics.spec import GeometryRecord
    from lightning_geo.monitor.lightning import GeometryMonitor
    from lightning_geo.storage.history import GeometryHistory, load_history

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
    "GeometryHistory": "storage.history",
    "GeometryMonitor": "monitor.lightning",
    "GeometryRecord": "metrics.spec",
    "PruningPlan": "analysis.pruning",
    "apply_plan": "interventions.head_removal",
    "evaluate_plan": "interventions.ablation",
    "explain": "interventions.explanation",
    "load_history": "storage.history",
    "measure": "measurement.sample",
    "pruning_plan": "analysis.pruning",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        if name == "GeometryMonitor":
            # not kept here: a LightningCLI imported since asks whether it is a callback of its own kind
            importlib.import_module(f"{__name__}.monitor._lightning").adopt()
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
