"""What a metric is and what a sample holds. numpy only, so that readers of runs never load torch.

Data model: a *record* holds all metrics of one sample, per stack and stored name
(``entropy``, ``effective_rank.query``). The table of metrics itself is :mod:`lightning_geo.metrics.catalog`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GATES",
    "KINDS",
    "MIXED",
    "ROLES",
    "STAGES",
    "GeometryRecord",
    "MetricSpec",
    "compares_samples",
    "gate_labels",
    "is_standard_error",
    "lookup",
    "needs_probe",
    "select",
    "spec_of",
    "standard_error",
]

ROLES = ("query", "key", "value", "output")
STAGES = ("input", "attention", "output")

#: What heads can be, see :mod:`lightning_geo.functional.gates`; and what they are where nothing fits.
GATES = ("open", "closed", "instance", "backward", "forward", "directional", "cluster")
MIXED = "mixed"
#: What a head can be, in the order of labels.
KINDS = (*GATES, MIXED)

_ERROR = ".stderr"
#: What the names of stacks end with that hold further attentions, or further runs, of another stack's layers.
_PART = re.compile(r"(\.(part|run)\d+)+$")

Stacks = Mapping[str, Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class MetricSpec:
    """One named number: what it is, where it lives, how it is read.

    Args:
        name: Name in ``metrics=``; stored as ``name`` or, with ``parts``, as ``name.part``.
        family: Charts, selection and the module in ``functional`` are grouped by it.
        axes: Names of the array's axes, ``layer`` first.
        unit: ``nats``, ``tokens``, ``1`` for ratios, ...
        formula: As plain text.
        meaning: What a rise or a fall suggests, one sentence.
        source: Paper or convention that it comes from.
        parts: Roles or stages, one stored metric each.
        range: Lowest and highest possible value; ``None`` where there is no bound.
        headline: Parts (or the bare name) that get per-layer scalars and pictures by default.
        summary: How a model number is made of layers and heads, and sequences merged.
        kind: What it is computed from, see :mod:`lightning_geo.metrics.registry`.
        self_attention: Defined only where queries and keys are the same tokens.
        default: Whether it is measured where nobody says which metrics.
        signed: Whether its sign says most: its colours diverge from 0.
    """

    name: str
    family: str
    axes: tuple[str, ...]
    unit: str
    formula: str
    meaning: str
    source: str
    kind: Literal[
        "row", "sequence", "tokens", "directions", "moments", "heads", "bases",
        "weights", "scores", "reads", "counts", "slopes",
    ]  # fmt: skip
    parts: tuple[str, ...] = ()
    range: tuple[float | None, float | None] = (None, None)
    headline: tuple[str, ...] = ()
    summary: Literal["mean", "max"] = "mean"
    self_attention: bool = False
    default: bool = True
    signed: bool = False

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names under which its arrays are stored."""
        return tuple(f"{self.name}.{part}" for part in self.parts) or (self.name,)


def _catalog() -> dict[str, MetricSpec]:
    from lightning_geo.metrics.catalog import CATALOG  # the table imports MetricSpec from here

    return CATALOG


def spec_of(stored_name: str) -> MetricSpec:
    """Return the spec behind a stored name such as ``cone.head`` or ``drift.query``.

    Raises:
        KeyError: If no metric has that name.

    Example:
        >>> spec_of("effective_rank.query").name
        'effective_rank'
    """
    catalog = _catalog()
    if stored_name in catalog:
        return catalog[stored_name]
    if stored_name.endswith(_ERROR):
        return _error_of(spec_of(stored_name.removesuffix(_ERROR)))
    base = stored_name.rpartition(".")[0]
    if base in catalog and stored_name in catalog[base].stored_names:
        return catalog[base]
    raise KeyError(stored_name)


def standard_error(stored_name: str) -> str:
    """Return the name under which the standard error of an estimated metric is stored.

    Example:
        >>> standard_error("entropy")
        'entropy.stderr'
    """
    return f"{stored_name}{_ERROR}"


def is_standard_error(stored_name: str) -> bool:
    """Whether it is one of those: it belongs to the metric before the dot, not into charts of its own."""
    return stored_name.endswith(_ERROR)


def _error_of(spec: MetricSpec) -> MetricSpec:
    return replace(
        spec,
        name=standard_error(spec.name),
        formula=f"standard error of {spec.name}: sqrt(Σ_b (1 − r_b/n_b) s_b²/r_b) / B",
        meaning="How far the sampled rows' mean may be off all rows' (95 % within 1.96 of these).",
        source="Cochran 1977 (stratified sampling without replacement)",
        range=(0.0, None),
        headline=(),
    )


def compares_samples(stored_name: str) -> bool:
    """Whether a metric needs another sample (``drift``, ``velocity``, ``weight_drift``)."""
    return needs_probe(stored_name) or spec_of(stored_name).name == "weight_drift"


def needs_probe(stored_name: str) -> bool:
    """Whether a metric needs another sample of the same inputs (``drift``, ``velocity``)."""
    return spec_of(stored_name).name in ("drift", "velocity")


def select(metrics: Iterable[str] | str | None = None) -> tuple[str, ...]:
    """Resolve families and metric names to stored names, in catalog order.

    A name that is both a family and a metric means the family; ``metric:entropy`` means the one.

    Args:
        metrics: Families, metric names, stored names; ``None`` for everything that is measured by default.

    Raises:
        ValueError: If a name is unknown (the nearest one is suggested) or nothing is selected.

    Example:
        >>> select(["metric:entropy", "drift.query"])
        ('entropy', 'drift.query')
    """
    catalog = _catalog()
    every = tuple(name for spec in catalog.values() for name in spec.stored_names)
    if metrics is None:
        return tuple(name for spec in catalog.values() if spec.default for name in spec.stored_names)
    wanted: set[str] = set()
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in metrics:
        bare = str(name).removeprefix("metric:")
        family = [s for spec in catalog.values() if spec.family == bare for s in spec.stored_names]
        # `metric:cone` also means `cone.head`: one metric, whatever its axes
        single = [s for s in every if s == bare or s.startswith(f"{bare}.")]
        found = family if family and bare == name else single
        if not found:
            known = sorted({*every, *catalog, *(spec.family for spec in catalog.values())})
            near = difflib.get_close_matches(bare, known, n=1, cutoff=0.0)
            raise ValueError(
                f"Expected every entry of `metrics` to be a metric or family, but got {name!r}. "
                f"Did you mean {near[0]!r}? All names: {', '.join(known)}."
            )
        wanted.update(found)
    if not wanted:
        raise ValueError(
            "Expected `metrics` to name at least one metric or family, but got none. "
            "Leave it out to measure what is measured by default."
        )
    return tuple(name for name in every if name in wanted)


def lookup(stacks: Stacks, key: str) -> NDArray[Any]:
    """Find ``key`` (``entropy``, ``effective_rank``, ``decoder.cross/entropy``) among stacks.

    A metric with roles or stages, asked for by its bare name, is stacked on a last axis. A bare name means
    the main stack where the others are its parts or further runs: ``entropy`` is ``encoder/entropy`` beside
    ``encoder.part2/entropy`` (the second attention of the same modules) or ``encoder.run2/entropy``.

    Raises:
        KeyError: If there is no such metric, or several stacks have it that are not parts of one.

    Example:
        >>> lookup({"encoder": {"entropy": np.ones(2)}, "encoder.part2": {"entropy": np.zeros(2)}}, "entropy")
        array([1., 1.])
    """
    stack, _, metric = key.rpartition("/")
    candidates = [stack] if stack else list(stacks)
    holders = [s for s in candidates if s in stacks and _part_names(stacks[s], metric)]
    if not holders:
        names = sorted({n for s in stacks.values() for n in s})
        near = difflib.get_close_matches(metric, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"No metric {key!r}.{hint} Stacks: {list(stacks)}; metrics: {names}.")
    if len(holders) > 1:
        holders = [s for s in holders if _main_stack(s) == s or _main_stack(s) not in stacks] or holders
    if len(holders) > 1:
        raise KeyError(
            f"{metric!r} is ambiguous: this model has several stacks. "
            f"Ask for one of {[f'{s}/{metric}' for s in holders]}."
        )
    arrays = stacks[holders[0]]
    names = _part_names(arrays, metric)
    return arrays[metric] if names == [metric] else np.stack([arrays[n] for n in names], axis=-1)


def _main_stack(stack: str) -> str:
    """The stack of which this one holds parts or further runs; itself where it holds none."""
    return _PART.sub("", stack)


def _part_names(arrays: Mapping[str, NDArray[Any]], metric: str) -> list[str]:
    if metric in arrays:
        return [metric]
    spec = _catalog().get(metric)
    return [n for n in spec.stored_names if n in arrays] if spec else []


@dataclass(eq=False)  # the truth value of compared arrays is undefined
class GeometryRecord:
    """All metrics of one sample at one step.

    Args:
        stacks: ``stack -> stored name -> float32 array``, axes as in the metric's spec.
        structure: Model class and, per stack, the module and the number of heads of each layer.
        matrices: Like ``stacks``: bases and head-pair matrices, at first and last samples only.
        step: Optimizer step whose entering weights were measured.
        epoch: Epoch of that step.
        batches_seen: Training batches that the weights have seen.
        wall_time: Seconds since the Unix epoch.
        cost_seconds: What taking the sample cost, sinks of the sample before included.
        probe: Fingerprint of the inputs; equal fingerprints mean equal inputs. Empty for batches.
        coverage: Attention calls ``seen`` and ``measured`` by all ranks, and ``left_out``: reason -> modules
            (on the rank that wrote the record). Empty where nobody counted.
        coverage_shown: Whether the share is a summary even where it is 1, because it was less before.

    Example:
        >>> record = GeometryRecord({"encoder": {"entropy": np.ones((2, 4), np.float32)}})
        >>> record["entropy"].shape, record.summaries()
        ((2, 4), {'entropy': 1.0})
    """

    stacks: dict[str, dict[str, NDArray[Any]]]
    structure: dict[str, Any] = field(default_factory=dict)
    matrices: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    batches_seen: int = 0
    wall_time: float = 0.0
    cost_seconds: float = 0.0
    probe: str = ""
    coverage: dict[str, Any] = field(default_factory=dict)
    coverage_shown: bool = False

    def __getitem__(self, key: str) -> NDArray[Any]:
        return lookup(self.stacks, key)

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
        """What each head is, by its margins of the family ``gates``.

        Args:
            stack: Of which stack; may be left out where there is one.

        Returns:
            [layer, head] names of ``KINDS``; empty where a head has no gate.

        Raises:
            KeyError: If the margins were not measured.

        Example:
            >>> margins = {f"gate.{gate}": np.full((1, 2), -0.2) for gate in GATES}
            >>> margins["gate.closed"][0, 1] = 0.1
            >>> GeometryRecord({"encoder": margins}).gates().tolist()
            [['mixed', 'closed']]
        """
        labels = gate_labels(self["gate" if stack is None else f"{stack}/gate"])
        return np.array([*KINDS, ""])[labels]

    def facts(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON-serialisable values."""
        names = (
            "structure", "step", "epoch", "batches_seen", "wall_time", "cost_seconds", "probe", "coverage",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

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
            values = self[key]
            finite = values[np.isfinite(values)]
            if finite.size:
                reduce = np.max if spec_of(key.rpartition("/")[2]).summary == "max" else np.mean
                result[key] = float(reduce(finite))
        share = self.coverage_share
        if np.isfinite(share) and (share != 1 or self.coverage_shown):
            result["coverage"] = share
        return result


def gate_labels(margins: NDArray[Any]) -> NDArray[np.int64]:
    """The gate of each head, as :func:`lightning_geo.functional.gate_labels` tells it, without torch.

    Args:
        margins: [..., 7] in the order of :data:`GATES`.

    Returns:
        [...] indices of :data:`KINDS`; -1 where margins are NaN.

    Example:
        >>> gate_labels(np.array([[0.1, 0.05, -1, -1, -1, -1, -1], [-0.2, -0.1, -1, -1, -1, -1, -1]]))
        array([0, 7])
    """
    best, unknown = margins.max(axis=-1), np.isnan(margins).any(axis=-1)
    label = np.where(best < 0, len(GATES), margins.argmax(axis=-1))
    return np.where(unknown, -1, label)
