"""``lightning-geo wandb-view``: a W&B workspace for the geometry of a project's runs."""

from __future__ import annotations

import argparse
import importlib
import re
from typing import Any

from lightning_geo.cli.command import add_command, put
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.key_metrics import key_metrics
from lightning_geo.metrics.selection import spec_of
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.utils.errors import RunError

__all__ = ["add_parser", "workspace"]

_NAME = "Geometry"
_STEP = "trainer/global_step"
_OPEN = 8  # charts of key metrics that are unfolded


def add_parser(commands: Any) -> None:
    """Add the command."""
    text = 'make the workspace "Geometry" in a project of Weights & Biases'
    parser = add_command(commands, "wandb-view", _run, text, monitor=False)
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="user or team, and the project's name")
    parser.add_argument(
        "--monitor", metavar="NAME", default="geometry", help="name of the monitor (geometry)"
    )
    parser.add_argument(
        "--layers", action="store_true", help='add charts of all layers, for runs with scalars="layer"'
    )


def _run(options: argparse.Namespace) -> int:
    entity, _, project = options.project.partition("/")
    if not entity or not project or "/" in project:
        raise RunError(f"Expected ENTITY/PROJECT, such as my-team/my-project, but got {options.project!r}.")
    view = workspace(entity, project, options.monitor, layers=options.layers)
    try:
        view.save()
    except Exception as error:  # W&B's own, of several kinds: no login, no network, no such project
        raise RunError(f"W&B did not take the workspace: {type(error).__name__}: {error}") from error
    put(f"{_NAME}: {view.url}")
    return 0


def workspace(entity: str, project: str, monitor: str = "geometry", *, layers: bool = False) -> Any:
    """Return a ``wandb_workspaces.workspaces.Workspace``, which is not saved yet.

    Its charts name keys by regular expressions, so that they fit runs with any stacks of layers.

    Args:
        entity: User or team.
        project: Name of the project.
        monitor: Name of the monitor.
        layers: Whether to add a section with all layers of each headline metric.

    Raises:
        RunError: If ``wandb-workspaces`` is not installed.
    """
    try:
        ws: Any = importlib.import_module("wandb_workspaces.workspaces")
        wr: Any = importlib.import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise RunError("This needs wandb-workspaces: pip install 'lightning-geo[workspaces]'.") from error

    def lines(title: str, keys: str) -> Any:
        return wr.LinePlot(title=title, x=_STEP, metric_regex=keys)

    key = [lines(_title(name), _range_of(monitor, name)) for name in key_metrics()]
    media = {
        "Key metrics by layer and step": "layer_by_step",
        "Headline metrics by layer and head": "layer_by_head",
        "Report": "report",
    }
    panels = [wr.MediaBrowser(title=title, media_keys=[f"{monitor}/{k}"]) for title, k in media.items()]
    panels.append(wr.WeavePanelSummaryTable(table_name=f"{monitor}/heads"))
    sections = [
        ws.Section(
            name="Training",
            panels=[lines("Loss", r"(?i)^(.*[/_])?loss([/_].*)?$"), lines("Learning rate", "^lr-.*$")],
            is_open=True,
        ),
        ws.Section(name="Geometry: lowest, mean and highest layer", panels=key[:_OPEN], is_open=True),
        ws.Section(name="Geometry: pictures, report and heads", panels=panels, is_open=True),
        ws.Section(name="Geometry: more key metrics", panels=key[_OPEN:]),
    ]
    if layers:
        charts = [
            lines(_title(name), _layers_of(monitor, spec, name))
            for spec in CATALOG.values()
            for name in spec.headline
        ]
        sections.append(ws.Section(name="Geometry: all layers", panels=charts))
    settings = ws.WorkspaceSettings(x_axis=_STEP)
    return ws.Workspace(entity=entity, project=project, name=_NAME, sections=sections, settings=settings)


def _title(name: str) -> str:
    return f"{spec_of(name).title} ({name})"


def _range_of(monitor: str, name: str) -> str:
    """The keys of a metric's model number, and of its lowest and highest layer."""
    monitor, name = re.escape(monitor), re.escape(name)
    return f"^({monitor}/(.+/)?{name}|{monitor}_layers/(.+/)?{name}/(min|max|mean))$"


def _layers_of(monitor: str, spec: MetricSpec, name: str) -> str:
    return rf"^{re.escape(monitor)}_{re.escape(spec.family)}/(.+/)?{re.escape(name)}/layer_[0-9]+$"
