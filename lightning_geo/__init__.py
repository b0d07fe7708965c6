"""Watch the geometry of attention while a transformer trains.

The rooms of the package, each importing only from those named before it:

- *shared*: ``utils`` (arguments, errors, ranks), ``metrics`` (what can be measured);
- *keep*: ``storage`` (the record and its file), ``analysis`` (runs compared and summed up);
- *measure*: ``kernels`` (fused statistics), ``functional`` (metrics as functions of tensors);
- *see*: ``observe`` (attention in a running model), ``probe`` (fixed inputs), ``measurement`` (one sample);
- *use*: ``interventions`` (ablation, pruning, explanation), ``report`` (pages, notebooks), ``loggers``;
- *drive*: ``monitor`` (the callback), ``cli``, ``dashboard`` (the tab in TensorBoard).

Importing the package loads neither torch nor Lightning: its public names are resolved at first use, so that
TensorBoard, which imports the package at every start, and readers of runs stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_geo._version import __version__
from lightning_geo.utils.views import provide as _provide

if TYPE_CHECKING:
    from lightning_geo import functional
    from lightning_geo.analysis.comparison import compare
    from lightning_geo.analysis.findings.diagnosis import diagnose
    from lightning_geo.analysis.findings.rule import Departure, Level, Rule
    from lightning_geo.analysis.pruning import PruningPlan, pruning_plan
    from lightning_geo.interventions.ablation import evaluate_plan
    from lightning_geo.interventions.explanation import explain
    from lightning_geo.interventions.head_removal import apply_plan
    from lightning_geo.measurement.collectors.collector import Collector
    from lightning_geo.measurement.one_batch import measure
    from lightning_geo.measurement.registration import register_metric
    from lightning_geo.metrics.spec import MetricSpec
    from lightning_geo.monitor.alerts import Alerts
    from lightning_geo.monitor.lightning import GeometryMonitor
    from lightning_geo.monitor.plain_loop import watch
    from lightning_geo.monitor.transformers_trainer import GeometryCallback
    from lightning_geo.storage.history import GeometryHistory, load_history
    from lightning_geo.storage.record import GeometryRecord
    from lightning_geo.utils.errors import GeometryError

__all__ = [
    "Alerts",
    "Collector",
    "Departure",
    "GeometryCallback",
    "GeometryError",
    "GeometryHistory",
    "GeometryMonitor",
    "GeometryRecord",
    "Level",
    "MetricSpec",
    "PruningPlan",
    "Rule",
    "__version__",
    "apply_plan",
    "compare",
    "diagnose",
    "evaluate_plan",
    "explain",
    "functional",
    "load_history",
    "measure",
    "pruning_plan",
    "register_metric",
    "watch",
]

#: Public name -> the module that defines it.
_MODULES = {
    "Alerts": "monitor.alerts",
    "Collector": "measurement.collectors.collector",
    "Departure": "analysis.findings.rule",
    "GeometryCallback": "monitor.transformers_trainer",
    "GeometryError": "utils.errors",
    "GeometryHistory": "storage.history",
    "GeometryMonitor": "monitor.lightning",
    "GeometryRecord": "storage.record",
    "Level": "analysis.findings.rule",
    "MetricSpec": "metrics.spec",
    "PruningPlan": "analysis.pruning",
    "Rule": "analysis.findings.rule",
    "apply_plan": "interventions.head_removal",
    "compare": "analysis.comparison",
    "diagnose": "analysis.findings.diagnosis",
    "evaluate_plan": "interventions.ablation",
    "explain": "interventions.explanation",
    "load_history": "storage.history",
    "measure": "measurement.one_batch",
    "pruning_plan": "analysis.pruning",
    "register_metric": "measurement.registration",
    "watch": "monitor.plain_loop",
}


# runs and plans draw themselves, but only this room, which knows all others, may name the one that draws,
# which is loaded at the first drawing
_provide(lambda: importlib.import_module(f"{__name__}.report.notebook"))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    if name == "functional":
        return importlib.import_module(f"{__name__}.functional")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
