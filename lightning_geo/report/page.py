"""One self-contained HTML file about a run, or about several against the first. No torch, no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from lightning_geo._version import __version__
from lightning_geo.analysis.changes import Change, change_of, changes, findings, layer_changes, sentence
from lightning_geo.analysis.comparison import Comparison, Difference, compare
from lightning_geo.analysis.gate_changes import (
    LEAD,
    GateChange,
    HeadGates,
    different_gates,
    head_gates,
    lasting_changes,
)
from lightning_geo.analysis.runs import MetricSeries, Run, describe_model, find_series, metric_series
from lightning_geo.metrics.gates import KINDS
from lightning_geo.report.figures import bars, classes, evolution, legend, lines, matrix
from lightning_geo.report.style import HEAD, PATTERNS
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.formatting import moment, number

__all__ = ["report"]

_MAPS = 6  # differences drawn for each further run
_GATES_APART = 10  # heads listed whose gates differ between runs
_GATE_CHANGES = 40  # listed; what is left is counted
_COMPARED = 4  # further runs with pictures of their own; a file has to stay small


def report(runs: Sequence[Run]) -> str:
    """Return an HTML page: what changed, when and where, and how the runs differ.

    Every name that comes from a user is escaped; the page loads nothing and allows no script.

    Args:
        runs: One run, or several of the same model, which are compared with the first.

    Raises:
        RunError: If the runs are of different models.
    """
    comparisons = [compare(runs[0].history, run.history) for run in runs[1:]]
    title = f"Geometry of {runs[0].name}" + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
    parts = [f"<h1>{escape(title)}</h1>", _facts(runs)]
    if comparisons:
        parts.append(_comparisons(runs, comparisons))
    for run in runs:
        parts.append(_changed(run, with_name=len(runs) > 1))
    parts += [_cards(runs), _table(runs[0]), _reading()]
    head = f"<head>{HEAD}<title>{escape(title)}</title></head>"
    body = "\n".join([PATTERNS, *parts])
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n<body>{body}</body></html>\n'


# -- the runs


def _facts(runs: Sequence[Run]) -> str:
    rows: list[tuple[str, list[str]]] = [
        ("model", [describe_model(run.history) for run in runs]),
        ("samples", [_span(run.history) for run in runs]),
        ("epochs", [f"{_fact(run, 'epoch', 0)} to {_fact(run, 'epoch')}" for run in runs]),
        ("batches seen", [_fact(run, "batches_seen") for run in runs]),
        ("probe", [_fact(run, "probe") or "none: measured on training batches" for run in runs]),
        ("measured", [_when(run.history) for run in runs]),
        (
            "cost of a sample",
            [f"{np.median(run.history.facts['cost_seconds']):.2f} s (median)" for run in runs],
        ),
    ]
    cells = [(name, *of) for name, of in rows]
    return _html_table(("run", *(run.name for run in runs)), cells, "facts")


def _fact(run: Run, fact: str, sample: int = -1) -> str:
    return str(run.history.facts[fact][sample])


def _span(history: GeometryHistory) -> str:
    return f"{len(history)}, steps {history.steps[0]} to {history.steps[-1]}"


def _when(history: GeometryHistory) -> str:
    first, last = (float(t) for t in history.facts["wall_time"][[0, -1]])
    return f"{moment(first)}, over {(last - first) / 60:.0f} min"


# -- how they differ


def _comparisons(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> str:
    parts = ["<h2>How the runs differ</h2>"]
    for place, (run, found) in enumerate(zip(runs[1:], comparisons, strict=True)):
        parts.append(f"<h3>A: {escape(runs[0].name)}; B: {escape(run.name)}</h3>")
        parts.append(
            "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in _difference_lines(found)) + "</ul>"
        )
        parts.append(_different_gates(runs[0].history, run.history, found))
        parts.append(_difference_table(found))
        if place < _COMPARED:
            parts.append(_difference_maps(found))
    return "\n".join(parts)


def _difference_lines(found: Comparison) -> Iterable[str]:
    layers = found.by_layer()
    if layers:
        (stack, most, times), (_, least, little) = layers[0], layers[-1]
        where = f" of {stack}" if len({s for s, _, _ in layers}) > 1 else ""
        yield (
            f"The runs differ most in layer {most}{where}: by {times:.2f} of what a metric moves within a "
            f"run; least in layer {least} ({little:.2f})."
        )
    for role in found.subspaces[-4:]:
        if np.isfinite(role.distance).any() and role.steps[0] > 0:
            layer, head = np.unravel_index(int(np.nanargmax(role.distance)), role.distance.shape)
            mean, largest = (
                number(float(of)) for of in (np.nanmean(role.distance), np.nanmax(role.distance))
            )
            yield (
                f"Their {role.role} subspaces are {mean} apart on average (0 the same, 1 orthogonal), most "
                f"in layer {layer} head {head} ({largest})."
            )
    yield {
        "same": "Both were measured on the same inputs.",
        "different": "They were measured on different inputs: a difference may be the inputs'.",
        "batches": "One was measured on its training batches: differences carry their noise.",
    }[found.probe]
    at = " and ".join(str(step) for step in dict.fromkeys(found.steps))
    yield f"Aligned by step ({found.alignment.how}) and compared at step {at}."
    yield from found.notes


def _different_gates(a: GeometryHistory, b: GeometryHistory, found: Comparison) -> str:
    both, different = different_gates(a, b, found.steps)
    if not both:
        return ""
    said = f"<p>{len(different)} of {both} heads have another gate in B than in A"
    rows = [
        (f"{d.stack}/{d.layer}" if len(a.stacks) > 1 else d.layer, d.head, d.a, d.b, _margin(d.lead))
        for d in different[:_GATES_APART]
    ]
    if not rows:
        return f"{said}.</p>"
    return (
        f"{said}, most clearly these:</p>"
        + _html_table(("layer", "head", "A", "B", "by"), rows)
        + (
            '<p class="note">by: how far the margin of its own gate leads that of the other run\'s, in the '
            "run where that is less. Near 0 the head is on the threshold in one of them.</p>"
        )
    )


def _difference_table(found: Comparison) -> str:
    rows = [
        (row.metric, row.layer, "" if row.head is None else row.head, number(row.a), number(row.b),
         number(row.difference, signed=True), f"{abs(row.relative):.2f}")
        for row in found.telling(10)
    ]  # fmt: skip
    return _html_table(("metric", "layer", "head", "A", "B", "B − A", "times"), rows) + (
        '<p class="note">Each metric where it differs most, three of a family. times: in units of how much '
        "the metric moves within a run.</p>"
    )


def _html_table(header: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "n") -> str:
    lines_ = ["".join(f"<th>{escape(name)}</th>" for name in header)]
    lines_ += ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines_)
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def _difference_maps(found: Comparison) -> str:
    def weight(of: Difference) -> float:
        return -float(np.nan_to_num(np.nanmax(np.abs(of.relative))))

    headline = [d for d in found.differences if d.metric.rpartition("/")[2] in d.spec.headline]
    chosen = sorted((d for d in headline if d.a.ndim == 2 and np.isfinite(d.difference).any()), key=weight)
    pictures = []
    for difference in chosen[:_MAPS]:
        end = float(np.nanmax(np.abs(difference.difference))) or 1.0
        title = f"{difference.metric}, B − A"
        pictures.append(matrix(difference.difference, title, -end, end, diverging=True))
    return f'<div class="pictures">{"".join(pictures)}</div>'


# -- what changed


def _changed(run: Run, *, with_name: bool) -> str:
    title = f"What changed in {escape(run.name)}" if with_name else "What changed"
    items = "".join(f"<li>{escape(finding.text)}</li>" for finding in findings(run.history))
    found = changes(run.history)
    several = len(run.history.stacks) > 1
    pictures = [
        bars(sizes, f"How much each layer{f' of {stack}' if several else ''} changed (1: average)")
        for stack, sizes in layer_changes(found)
    ]
    drifts = [change for change in found if change.of.name == "drift.output"]
    for change in drifts[:2]:
        pictures.append(
            matrix(change.of.values[-1], f"{change.of.key} at the end", 0.0, _top(change.of.values))
        )
    body = f'<ul>{items}</ul><div class="pictures">{"".join(pictures)}</div>'
    return f"<h2>{title}</h2>{body}{''.join(_gates(gates, several) for gates in head_gates(run.history))}"


def _gates(gates: HeadGates, several: bool) -> str:
    """What each head is at the first and the last sample, and which changed for good."""
    found = lasting_changes(gates)
    first, last = gates.counts(0), gates.counts(-1)
    names = [f"{name}: {first.get(name, 0)}, then {last.get(name, 0)}" for name in KINDS]
    changed = np.zeros(gates.labels.shape[1:], bool)
    for change in found:
        changed[change.layer, change.head] = True
    pictures = [
        classes(gates.labels[0], f"step {gates.steps[0]}"),
        classes(gates.labels[-1], f"step {gates.steps[-1]}", changed),
        legend(names, "heads, first and last"),
    ]
    # the clearest ones if they are too many, by step all the same
    shown = sorted(found, key=lambda change: -change.lead)[:_GATE_CHANGES]
    items = "".join(f"<li>{escape(_change_line(c))}</li>" for c in found if c in shown)
    more = f"<li>and {len(found) - len(shown)} less clear ones</li>" if len(found) > len(shown) else ""
    where = f" of {escape(gates.stack)}" if several else ""
    return (
        f"<h3>What the heads do{where}: {changed.sum()} of {(gates.labels[-1] >= 0).sum()} changed their gate"
        f'</h3><div class="pictures">{"".join(pictures)}</div><ul class="two">{items}{more}</ul>'
        '<p class="note">Dots: heads in the list. A change is listed if the head still is the new gate at '
        f"the next sample, and the new margin came to lead the old one by {LEAD} or more (mixed: 0). "
        "In brackets how far the head was inside the new gate then, and at the end of its stay; of a mixed "
        "one, how far from the nearest.</p>"
    )


def _change_line(change: GateChange) -> str:
    return (
        f"layer {change.layer} head {change.head}: {change.before} → {change.after} at step {change.step} "
        f"(margin {_margin(change.margin)}, later {_margin(change.last)})"
    )


def _margin(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _top(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    return float(np.nanmax(values)) or 1.0


# -- metric by metric


def _cards(runs: Sequence[Run]) -> str:
    first = runs[0].history
    cards = [_card(runs, change) for change in changes(first)]
    whose = f"Sentences and pictures are of A, {escape(runs[0].name)}, where nothing else is said."
    about = f'<p class="note">{whose}</p>' if len(runs) > 1 else ""
    return f"<h2>Metric by metric</h2>{about}" + "\n".join(cards) if cards else ""


def _card(runs: Sequence[Run], change: Change) -> str:
    of, steps = change.of, runs[0].history.steps
    low, high = _limits(of)
    known = np.flatnonzero(np.isfinite(of.values.reshape(len(steps), -1)).any(axis=1))
    start, end = known[0], known[-1]
    most = float(np.nanmax(np.abs(change.cells))) or 1.0
    pictures = []
    if of.values.ndim == 3:
        by_layer = of.layers()
        if not of.name.startswith("drift"):  # it is 0 at the start
            pictures.append(
                matrix(of.values[start], f"step {steps[start]}", low, high, diverging=of.spec.signed)
            )
        pictures.append(matrix(of.values[end], f"step {steps[end]}", low, high, diverging=of.spec.signed))
        if len(runs) == 2 and (other := _same(runs[1], of)) is not None:
            last = other.values[-1]
            title = f"B, step {runs[1].history.steps[-1]}"
            pictures.append(matrix(last, title, low, high, diverging=of.spec.signed))
        if not of.name.startswith("drift"):
            pictures.append(matrix(change.cells, "change", -most, most, diverging=True))
    else:
        by_layer = of.values
    ends = (low, high) if of.spec.signed else _range(by_layer)
    pictures.append(evolution(by_layer, steps, "each layer over the run", *ends, diverging=of.spec.signed))
    pictures.append(_curves(runs, of))
    spec = of.spec
    unit = "" if spec.unit == "1" else f", in {spec.unit}"
    return (
        f"<section><h3>{escape(of.key)}</h3><p>{escape(sentence(change))}</p>"
        f'<p class="note">{escape(spec.formula)}{escape(unit)}. {escape(spec.meaning)}</p>'
        f'<div class="pictures">{"".join(pictures)}</div></section>'
    )


def _curves(runs: Sequence[Run], of: MetricSeries) -> str:
    curves = []
    for run in runs:
        other = _same(run, of)
        if other is not None:
            curves.append((run.name, run.history.steps, other.model()))
    if len(runs) > 1:
        return lines(curves, "the model's number in each run")
    flat = of.values.reshape(len(of.values), -1)
    defined = np.isfinite(flat).any(axis=1)
    band = np.full((2, len(flat)), np.nan)
    if defined.any():
        band[:, defined] = np.nanpercentile(flat[defined], (10, 90), axis=1)
    cells = "heads" if of.values.ndim == 3 else "layers"
    middle = "largest" if of.spec.summary == "max" else "mean"
    return lines(curves, f"{middle}, and the middle 80 % of {cells}", (band[0], band[1]))


def _same(run: Run, of: MetricSeries) -> MetricSeries | None:
    """The metric in another run of the same model, whose only stack may have another name."""
    stack = of.stack if of.stack in run.history.stacks else next(iter(run.history.stacks))
    return find_series(run.history, stack, of.name)


def _limits(of: MetricSeries) -> tuple[float, float]:
    """Ends of the colour bar, the same for start and end: all that a metric may take, if it takes half."""
    low, high = _range(of.values)
    if of.spec.signed:  # 0 has to be in the middle
        high = max(-low, high)
        low = -high
    least, most = of.spec.range
    if least is not None and most is not None and high - low > (most - least) / 2:
        return least, most
    return low, high


def _range(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _table(run: Run) -> str:
    rows = []
    for of in metric_series(run.history):
        change = change_of(of, run.history.steps)
        if change is not None:
            layer, head = change.most
            most = float(change.cells[layer] if head is None else change.cells[layer, head])
            rows.append(
                (of.key, number(change.first), number(change.last),
                 number(change.last - change.first, signed=True), layer,
                 "" if head is None else head, number(most, signed=True))
            )  # fmt: skip
    header = ("metric", "first", "last", "change", "most in layer", "head", "by")
    return f"<h2>All metrics of {escape(run.name)}</h2>{_html_table(header, rows)}"


def _reading() -> str:
    return (
        "<h2>How to read this</h2><p>A sample at step <i>s</i> describes the weights that enter optimizer "
        "step <i>s</i>; step 0 is the model before training. Layers and heads count from 0. In the pictures "
        "layers run down and heads to the right; hatched: no value. The model's number is the mean over "
        "layers and heads, for max_logit the largest. How much a layer changed: last minus first sample "
        "of each headline metric, in units of that metric's root mean square over all layers and heads; of "
        "that the root mean square over metrics and heads.</p>"
        f'<p class="note">Made by lightning-geo {escape(__version__)}.</p>'
    )
