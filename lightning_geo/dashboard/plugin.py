"""The server side of the tab: which runs there are, and the values of one metric at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.base_plugin import FrontendMetadata, TBPlugin
from werkzeug.wrappers import Request, Response

from lightning_geo.dashboard.curves_route import read_curves
from lightning_geo.dashboard.head_route import read_head
from lightning_geo.dashboard.metadata import PLUGIN, TagAddress, describe, parse_tag, tag_of
from lightning_geo.dashboard.order import BUILT_IN, natural, ordered
from lightning_geo.dashboard.patience import Patience
from lightning_geo.dashboard.requests import argument, guarded, respond, where
from lightning_geo.dashboard.run_findings import run_findings
from lightning_geo.dashboard.runs_route import RunRows
from lightning_geo.dashboard.samples import in_force, pack
from lightning_geo.metrics.foreign_specs import differing_fields, read_specs
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.events import metadata_tag, session_tag
from lightning_geo.utils.errors import ArgumentError

__all__ = ["GeometryPlugin"]

_STATIC = "static"
_TYPES = {".js": "text/javascript", ".css": "text/css"}
_OTHERWISE = "Other runs mean other numbers by this name"
_ALL = 10**9  # samples; the provider wants a number


class GeometryPlugin(TBPlugin):  # type: ignore[misc]  # tensorboard ships no types
    """Serves the record of runs to the page. Reads through TensorBoard's data provider only.

    Args:
        context: What TensorBoard gives to plugins.
    """

    plugin_name = PLUGIN

    def __init__(self, context: Any) -> None:
        self._provider = Patience(context.data_provider)
        limits = getattr(context.flags, "samples_per_plugin", None)
        #: samples of a tag that TensorBoard keeps, 0 for all
        self._kept: int = limits.get(PLUGIN, 0) if isinstance(limits, dict) else 0
        #: (experiment, run, monitor) -> its last sample, and the specs that it carries
        self._read_specs: dict[tuple[str, str, str], tuple[Any, dict[str, MetricSpec]]] = {}
        #: (experiment, run, monitor) -> its last sample, and what was found up to there, as JSON
        self._answers: dict[tuple[str, str, str], tuple[Any, str]] = {}
        self._rows = RunRows(self._provider, self.findings, self._stored_specs)
        folder = resources.files("lightning_geo.dashboard") / _STATIC
        # read now: nothing else can be asked for, and an upgrade under a running server mixes nothing
        self._static = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}

    def get_plugin_apps(self) -> dict[str, Any]:
        return {
            f"/{_STATIC}/*": self.static_route,
            "/index": self.index_route,
            "/metadata": self.metadata_route,
            "/data": self.data_route,
            "/findings": self.findings_route,
            "/curves": self.curves_route,
            "/head": self.head_route,
            "/runs": self.runs_route,
        }

    def is_active(self) -> bool:
        return False  # TensorBoard itself looks for data of the plugin's name

    def frontend_metadata(self) -> Any:
        return FrontendMetadata(es_module_path=f"/{_STATIC}/index.js", tab_name="Geometry")

    @guarded
    def static_route(self, request: Request) -> Response:
        """The page's modules and style sheet."""
        name = request.path.rpartition(f"/{_STATIC}/")[2]
        kind = _TYPES.get(PurePosixPath(name).suffix)
        if name not in self._static or kind is None:
            raise LookupError("Not found.")
        return respond(request, self._static[name], kind)

    @guarded
    def index_route(self, request: Request) -> Response:
        """The available data: asked for again and again while the page is open."""
        return respond(request, self.index(*where(request)), "application/json")

    @guarded
    def metadata_route(self, request: Request) -> Response:
        """The metadata of a monitor's last sample: layers of the model, fingerprint of the probe."""
        run, monitor = argument(request, "run"), argument(request, "monitor")
        return respond(request, self.metadata(*where(request), run, monitor), "application/json")

    @guarded
    def findings_route(self, request: Request) -> Response:
        """The verdict on a run and what its monitor found."""
        run, monitor = argument(request, "run"), argument(request, "monitor")
        return respond(request, self.findings(*where(request), run, monitor), "application/json")

    @guarded
    def curves_route(self, request: Request) -> Response:
        """Loss, validation score and learning rate of a run, see ``read_curves``."""
        body = read_curves(self._provider, *where(request), argument(request, "run"), request.args)
        return respond(request, body, "application/json")

    @guarded
    def head_route(self, request: Request) -> Response:
        """The attention patterns and twins of one head, see ``read_head``."""
        read = partial(self._read, *where(request), argument(request, "run"), limit=_ALL)
        cell = int(argument(request, "layer")), int(argument(request, "head"))
        body = read_head(read, argument(request, "monitor"), argument(request, "stack"), cell)
        return respond(request, body, "application/octet-stream")

    @guarded
    def runs_route(self, request: Request) -> Response:
        """A row for each run, see ``RunRows``."""
        return respond(request, self._rows.read(*where(request), request.args), "application/json")

    @guarded
    def data_route(self, request: Request) -> Response:
        """The samples of one metric: length of the header (uint32), header as JSON, values as float32."""
        address = TagAddress(*(argument(request, name) for name in TagAddress._fields))
        limit = int(request.args.get("samples", _ALL))
        held = int(request.args.get("held", 0)), float(request.args.get("stamp", 0.0))
        body = self.data(*where(request), argument(request, "run"), address, limit, held)
        return respond(request, body, "application/octet-stream")

    def index(self, ctx: Any, experiment: str) -> dict[str, Any]:
        """Return runs with their monitors, stacks and metrics, and what the metrics mean.

        Lists rather than objects wherever a user chose the name: it may be ``__proto__``.
        """
        listing = self._provider.list_tensors(ctx, experiment_id=experiment, plugin_name=PLUGIN)
        runs: dict[str, dict[str, dict[str, list[str]]]] = {}
        changed: dict[tuple[str, str], tuple[int, float]] = {}
        # sorted: the fast data server lists in another order each time
        for run, tags in sorted(listing.items(), key=lambda item: natural(item[0])):
            for tag, series in sorted(tags.items(), key=lambda item: natural(item[0])):
                address = parse_tag(tag)
                if address is None:
                    continue
                stacks = runs.setdefault(run, {}).setdefault(address.monitor, {})
                stacks.setdefault(address.stack, []).append(address.metric)
                key = (run, address.monitor)
                changed[key] = max(changed.get(key, (0, 0.0)), (series.max_step, series.max_wall_time))
        specs = self._specs(ctx, experiment, runs, changed)
        metrics = {
            metric
            for run in runs.values()
            for stacks in run.values()
            for s in stacks.values()
            for metric in s
        }
        return {
            "runs": [
                {
                    "run": run,
                    "monitors": [
                        {
                            "monitor": monitor,
                            "last": changed[run, monitor],
                            "stacks": [
                                {"stack": stack, "metrics": ordered(names)} for stack, names in stacks.items()
                            ],
                        }
                        for monitor, stacks in monitors.items()
                    ],
                }
                for run, monitors in runs.items()
            ],
            "metrics": [describe(metric, specs) for metric in ordered(metrics)],
        }

    def _specs(
        self,
        ctx: Any,
        experiment: str,
        runs: dict[str, dict[str, dict[str, list[str]]]],
        changed: dict[tuple[str, str], tuple[int, float]],
    ) -> dict[str, MetricSpec]:
        """Specs of the metrics that are not built in: the first run's, with a word on others of the name."""
        specs: dict[str, MetricSpec] = {}
        for run, monitors in runs.items():
            for monitor, stacks in monitors.items():
                if not {name for names in stacks.values() for name in names} - BUILT_IN.keys():
                    continue
                key = (experiment, run, monitor)
                last, read = self._read_specs.get(key, (None, {}))
                if last != changed[run, monitor]:
                    read = self._stored_specs(ctx, experiment, run, monitor)
                    self._read_specs[key] = changed[run, monitor], read
                for name, spec in read.items():
                    first = specs.setdefault(name, spec)
                    if (fields := differing_fields(first, spec)) and _OTHERWISE not in first.meaning:
                        meaning = f"{first.meaning} {_OTHERWISE}: {', '.join(fields)}."
                        specs[name] = replace(first, meaning=meaning)
        return specs

    def _stored_specs(self, ctx: Any, experiment: str, run: str, monitor: str) -> dict[str, MetricSpec]:
        try:
            stored = self.metadata(ctx, experiment, run, monitor).get("specs", {})
        except (LookupError, ValueError, AttributeError, RecursionError):  # damaged: the metrics stay unnamed
            return {}
        return read_specs(stored)[0]

    def metadata(self, ctx: Any, experiment: str, run: str, monitor: str) -> dict[str, Any]:
        """Return the metadata of a monitor's last sample.

        Raises:
            LookupError: If the run or the monitor is not there.
        """
        tag = metadata_tag(monitor)
        data = self._read(ctx, experiment, run, [tag], 1).get(tag)
        if not data:
            raise LookupError(f"No metadata of monitor {monitor!r} in run {run!r}.")
        metadata: dict[str, Any] = json.loads(data[-1].numpy.item())
        return metadata

    def findings(self, ctx: Any, experiment: str, run: str, monitor: str) -> str:
        """Return the verdict on a run and its findings, see ``run_findings``, as JSON; anew where it went on.

        Raises:
            LookupError: If the run or the monitor is not there.
        """
        tags = [metadata_tag(monitor), session_tag(monitor)]
        listing = self._provider.list_tensors(
            ctx, experiment_id=experiment, plugin_name=PLUGIN, run_tag_filter=RunTagFilter([run], tags)
        ).get(run, {})
        if tags[0] not in listing:
            raise LookupError(f"No metadata of monitor {monitor!r} in run {run!r}.")
        last = [(tag, series.max_step, series.max_wall_time) for tag, series in sorted(listing.items())]
        read, answer = self._answers.get((experiment, run, monitor), (None, ""))
        if read != last:
            data = self._read(ctx, experiment, run, tags, _ALL)
            summary = run_findings(data.get(tags[0], []), data.get(tags[1], []), self._kept)
            answer = json.dumps(summary, allow_nan=False)  # once: TensorBoard is slow at many heads
            self._answers[experiment, run, monitor] = last, answer
        return answer

    def data(
        self,
        ctx: Any,
        experiment: str,
        run: str,
        address: TagAddress,
        limit: int = _ALL,
        held: tuple[int, float] = (0, 0.0),
    ) -> bytes:
        """Return the samples of a metric in force, as ``data_route`` sends them.

        The header: ``shape`` [sample, layer, head], ``steps``, ``first`` (index of the first sample sent),
        ``total`` (samples that there are) and ``stamp`` (wall time of the last one).

        Args:
            ctx: Of the request.
            experiment: Of the request.
            run: As TensorBoard names it.
            address: Which metric.
            limit: Samples at most, at equal distances; the first and the last are among them.
            held: How many samples the page has, and the stamp that came with them: if they still stand, what
                follows on them is sent alone.

        Raises:
            LookupError: If there is no such series.
            ValueError: If ``limit`` is below 2, or what is stored is no numeric array.
        """
        if limit < 2:
            raise ArgumentError(f"Expected `samples` to be at least 2 but got {limit}.")
        tag, session = tag_of(address), session_tag(address.monitor)
        read = self._read(ctx, experiment, run, [tag, session], _ALL)
        if not read.get(tag):
            raise LookupError(f"No {tag!r} in run {run!r}.")
        samples = in_force(read[tag], read.get(session, []))
        total = len(samples)
        if total > limit:
            samples = [samples[i] for i in np.linspace(0, total - 1, limit).round().astype(int)]
        count, stamp = held
        # whatever replaces a sample replaces all behind it too: if the last one stands, so do all before
        first = count if 0 < count <= total <= limit and samples[count - 1].wall_time == stamp else 0
        header = {"first": first, "total": total, "stamp": samples[-1].wall_time if samples else 0.0}
        return pack(samples[first:], address, header)

    def _read(self, ctx: Any, experiment: str, run: str, tags: list[str], limit: int) -> dict[str, Any]:
        by_run = self._provider.read_tensors(
            ctx,
            experiment_id=experiment,
            plugin_name=PLUGIN,
            run_tag_filter=RunTagFilter([run], tags),
            downsample=limit,
        )
        tensors: dict[str, Any] = by_run.get(run, {})
        return tensors
