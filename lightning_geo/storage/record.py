"""The record: all metrics of one sample."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.foreign_specs import as_stored
from lightning_geo.metrics.gates import KINDS, gate_labels
from lightning_geo.metrics.reductions import reduce_finite
from lightning_geo.metrics.selection import is_standard_error, spec_of
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.notebook_view import ShownRecord
from lightning_geo.storage.patterns import AttentionPatterns
from lightning_geo.utils.errors import UnknownKeyError
from lightning_geo.utils.formatting import did_you_mean

__all__ = ["GeometryRecord", "lookup", "stored_parts"]


#: What the names of stacks end with that hold further attentions, or further runs, of another stack's layers.
_PART = re.compile(r"(\.(part|run)\d+)+$")


_Stacks = Mapping[str, Mapping[str, NDArray[Any]]]


def lookup(stacks: _Stacks, key: str, specs: Mapping[str, MetricSpec] | None = None) -> NDArray[Any]:
    """Find ``key`` (``entropy``, ``effective_rank``, ``decoder.cross/entropy``) among stacks.

    A metric with roles or stages, asked for by its bare name, is stacked on a last axis. A bare name means
    the main stack where the others are its parts or further runs: ``entropy`` is ``encoder/entropy`` beside
    ``encoder.part2/entropy`` (the second attention of the same modules) or ``encoder.run2/entropy``.

    Args:
        stacks: ``stack -> stored name -> array``.
        key: What to find.
        specs: Of the metrics that are not built in.

    Raises:
        KeyError: If there is no such metric, or several stacks have it that are not parts of one.

    Example:
        >>> lookup({"encoder": {"entropy": np.ones(2)}, "encoder.part2": {"entropy": np.zeros(2)}}, "entropy")
        array([1., 1.])
    """
    stack, names = stored_parts(stacks, key, specs)
    arrays = stacks[stack]
    bare = key.rpartition("/")[2]
    return arrays[bare] if names == [bare] else np.stack([arrays[n] for n in names], axis=-1)


def stored_parts(
    stacks: _Stacks, key: str, specs: Mapping[str, MetricSpec] | None = None
) -> tuple[str, list[str]]:
    """Return the stack and the stored names that :func:`lookup` finds for a key.

    Raises:
        KeyError: As there.
    """
    if not isinstance(key, str):
        raise UnknownKeyError(f"Expected the name of a metric but got {key!r}. A sample is `record(index)`.")
    stack, _, metric = key.rpartition("/")
    candidates = [stack] if stack else list(stacks)
    holders = [s for s in candidates if s in stacks and _part_names(stacks[s], metric, specs)]
    if not holders:
        names = sorted({n for s in stacks.values() for n in s})
        raise UnknownKeyError(f"No metric {key!r}. {did_you_mean(metric, names)} Stacks: {list(stacks)}.")
    if len(holders) > 1:
        holders = [s for s in holders if _main_stack(s) == s or _main_stack(s) not in stacks] or holders
    if len(holders) > 1:
        raise UnknownKeyError(
            f"{metric!r} is ambiguous: this model has several stacks. "
            f"Ask for one of {[f'{s}/{metric}' for s in holders]}."
        )
    return holders[0], _part_names(stacks[holders[0]], metric, specs)


def _main_stack(stack: str) -> str:
    """The stack of which this one holds parts or further runs; itself where it holds none."""
    return _PART.sub("", stack)


def _part_names(
    arrays: Mapping[str, NDArray[Any]], metric: str, specs: Mapping[str, MetricSpec] | None
) -> list[str]:
    if metric in arrays:
        return [metric]
    spec = CATALOG.get(metric) or (specs or {}).get(metric)
    return [n for n in spec.stored_names if n in arrays] if spec else []


@dataclass(eq=False)  # the truth value of compared arrays is undefined
class GeometryRecord(ShownRecord):
    """All metrics of one sample at one step. A notebook shows maps of the headline metrics.

    Args:
        stacks: ``stack -> stored name -> float32 array``, axes as in the metric's spec.
        model: Model class and, per stack, the module and the number of heads of each layer.
        matrices: Like ``stacks``: bases and head-pair matrices, at first and last samples only.
        step: Optimizer step whose entering weights were measured.
        epoch: Epoch of that step.
        batches_seen: Training batches that the weights have seen.
        wall_time: Seconds since the Unix epoch.
        cost_seconds: What taking the sample cost, sinks of the sample before included.
        probe_fingerprint: Fingerprint of the inputs; equal fingerprints mean equal inputs. Empty for batches.
        coverage: Attention calls of the asked layers ``seen`` and ``measured`` by all ranks, and
            ``left_out``: reason -> modules (on the rank that wrote the record); ``not_finite``: stack ->
            layers with NaN or infinite activations, where there are any. Empty where nobody counted.
        specs: Of the metrics that are not built in, by name: the record describes itself.
        findings: Findings that opened, got worse or ended with this sample.
        looked_for: Names of the rules that the monitor checked with this sample; empty where it looked for no
            findings.
        coverage_shown: Whether the share is a summary even where it is 1, because it was less before.
        patterns: By stack, where heads look in one sequence of the probe, see :class:`.AttentionPatterns`; at
            samples that get pictures only. Cross-attention has none, nor have attentions whose queries have
            no known place among their keys.

    Example:
        >>> record = GeometryRecord({"encoder": {"entropy": np.ones((2, 4), np.float32)}})
        >>> record["entropy"].shape, record.summaries()
        ((2, 4), {'entropy': 1.0})
    """

    stacks: dict[str, dict[str, NDArray[Any]]]
    model: dict[str, Any] = field(default_factory=dict)
    matrices: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    batches_seen: int = 0
    wall_time: float = 0.0
    cost_seconds: float = 0.0
    probe_fingerprint: str = ""
    coverage: dict[str, Any] = field(default_factory=dict)
    specs: dict[str, MetricSpec] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    looked_for: list[str] = field(default_factory=list)
    coverage_shown: bool = False
    patterns: dict[str, AttentionPatterns] = field(default_factory=dict)

    def __getitem__(self, key: str) -> NDArray[Any]:
        return lookup(self.stacks, key, self.specs)

    def __repr__(self) -> str:
        stacks = ", ".join(self.stacks)
        return f"GeometryRecord(step {self.step}, {len(self.keys())} metrics of {stacks})"

    def __contains__(self, key: str) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """Names that ``record[name]`` takes, one per stored array."""
        several = len(self.stacks) > 1
        return [f"{s}/{n}" if several else n for s, arrays in self.stacks.items() for n in arrays]

    def gates(self, stack: str | None = None) -> NDArray[np.str_]:
        """Name the gate of each head, by its margins of the family ``gates``.

        Args:
            stack: Of which stack; may be left out where there is one.

        Returns:
            [layer, head] names of ``KINDS``; empty where a head has no gate.

        Raises:
            KeyError: If the margins were not measured.

        Example:
            >>> from lightning_geo.metrics.gates import GATES
            >>> margins = {f"gate.{gate}": np.full((1, 2), -0.2) for gate in GATES}
            >>> margins["gate.closed"][0, 1] = 0.1
            >>> GeometryRecord({"encoder": margins}).gates().tolist()
            [['mixed', 'closed']]
        """
        labels = gate_labels(self["gate" if stack is None else f"{stack}/gate"])
        return np.array([*KINDS, ""])[labels]

    def metadata(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON-serialisable values."""
        names = (
            "model", "step", "epoch", "batches_seen", "wall_time", "cost_seconds", "probe_fingerprint",
            "coverage",
        )  # fmt: skip
        specs = {name: as_stored(spec) for name, spec in self.specs.items()}
        findings = [finding.as_dict() for finding in self.findings]
        return (
            {name: getattr(self, name) for name in names}
            | ({"specs": specs} if specs else {})
            | ({"findings": findings} if findings else {})
            | ({"looked_for": list(self.looked_for)} if self.looked_for else {})
        )

    @property
    def coverage_share(self) -> float:
        """Measured attention calls over seen ones; NaN where nobody counted.

        Example:
            >>> GeometryRecord({}, coverage={"seen": 4, "measured": 3, "left_out": {}}).coverage_share
            0.75
        """
        seen, measured = self.coverage.get("seen"), self.coverage.get("measured")
        if not isinstance(seen, int) or not isinstance(measured, int) or seen < 1:  # read from a file
            return float("nan")
        return measured / seen

    def summaries(self) -> dict[str, float]:
        """One number per metric for the whole model; metrics without a value are left out.

        ``coverage`` is the share of attention calls that were measured, where it is less than 1.
        """
        result = {}
        for key in (key for key in self.keys() if not is_standard_error(key)):
            try:
                spec = spec_of(key.rpartition("/")[2], self.specs)
            except KeyError:  # from a file: a metric of a newer version, or one whose spec is damaged
                continue
            value = float(reduce_finite(self[key], spec.summary))
            if np.isfinite(value):
                result[key] = value
        share = self.coverage_share
        if np.isfinite(share) and (share != 1 or self.coverage_shown):
            result["coverage"] = share
        return result
