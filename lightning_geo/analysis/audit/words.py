"""The words for an audit: requirements, values found, their size, and the effect of waivers."""

from __future__ import annotations

import math

import numpy as np

from lightning_geo.analysis.audit.check import Audit, Check, WaiverUse
from lightning_geo.analysis.audit.policy import Places
from lightning_geo.analysis.findings.words import named_layers, where
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.formatting import number, some

__all__ = [
    "asked",
    "counted",
    "exact",
    "figure",
    "found",
    "places_text",
    "readable",
    "run_notes",
    "verdict",
    "waiver_text",
]


def verdict(audit: Audit) -> str:
    """Return the result of an audit as one line."""
    checks = _count(len(audit.checks), "check")
    breached, missing, waived = (audit.count(result) for result in ("breached", "not measured", "waived"))
    optional = sum(c.result == "not measured" and not c.limit.required for c in audit.checks)
    some_optional = "optional" if optional == missing else f"{optional} of them optional"
    open_ = f"{missing} not fully measured" + (f" ({some_optional})" if optional else "")
    parts = [f"{waived} waived"] * bool(waived) + [open_] * bool(missing)
    if breached:
        names = some(dict.fromkeys(c.limit.name for c in audit.checks if c.result == "breached"))
        return f"Breached: {breached} of {checks} ({names})" + "".join(f", {part}" for part in parts) + "."
    if audit.unread:
        counts = ", ".join([f"{audit.count('passed')} of {checks} passed", *parts])
        return f"Not shown: parts of the record could not be read ({counts})."
    if audit.result == "not measured":
        more = f" ({waived} waived)" if waived else ""
        return f"Not shown: {missing} of {checks} could not be fully measured{more}."
    if waived or missing:
        return f"Passed, with exceptions: {audit.count('passed')} of {checks} passed, {', '.join(parts)}."
    return f"Passed: {'the only check' if len(audit.checks) == 1 else f'all {checks}'}."


def asked(check: Check) -> str:
    """Return a limit as text: its bounds, the layers and heads, and the samples.

    Example:
        >>> from lightning_geo.analysis.audit.policy import Limit, Policy
        >>> from lightning_geo.storage.history import GeometryHistory
        >>> from lightning_geo.storage.record import GeometryRecord
        >>> from lightning_geo.analysis.audit.check import audit
        >>> run = GeometryHistory([GeometryRecord({"encoder": {"entropy": np.ones((2, 4))}})])
        >>> policy = Policy("p", "o", (Limit("focus", ("entropy",), Places(layers=(1,)), at_least=0.05),))
        >>> asked(audit(run, policy).checks[0])
        'entropy at least 0.05 nats, in layer 1, at the last sample'
    """
    limit, unit = check.limit, _unit(check.spec)
    bounds = [
        f"{words} {exact(value)}{unit}"
        for words, value in (("at least", limit.at_least), ("at most", limit.at_most))
        if value is not None
    ]
    if limit.change_at_most is not None:
        bounds = [f"within {exact(limit.change_at_most)}{unit} of the earlier release"]
    start = f" from step {limit.from_step}" if limit.from_step else ""
    samples = {
        "last": "at the last sample",
        "all": f"at all samples{start}",
        "measured": f"at all samples{start} that measured it",
    }[limit.samples]
    places = Places(None, limit.places.layers, limit.places.heads)
    return f"{check.metric} {' and '.join(bounds)}, in {places_text(places)}, {samples}"


def found(check: Check) -> str:
    """Return the values found as text, and how far they are from the limit."""
    if check.worst is None:
        return " ".join(check.reasons) or "No value was measured."
    worst, limit = check.worst, check.limit
    place = f"layer {worst.layer}" + ("" if worst.head is None else f", head {worst.head}")
    value = _value(check)
    what = f"{value} in {place} at step {worst.step}"
    if not math.isnan(worst.error):
        what += f" (estimated, standard error {figure(worst.error)})"
    if check.result == "breached":
        cells = where(check.breached, check.defined)
        first = f"Breached by {cells}, first at step {check.since}." if check.since is not None else ""
        size = "no finite number" if math.isinf(worst.beyond) else f"{figure(worst.beyond)} beyond"
        text = f"{first} Worst: {what}, {size}{'' if math.isinf(worst.beyond) else ' the limit'}."
    elif worst.beyond > 0:
        text = f"Beyond the limit, but waived: {where(check.waived, check.defined)}. Worst: {what}."
    else:
        edge = "Largest change" if limit.of_change else "Closest to the limit"
        text = f"{edge}: {what}, {figure(-worst.beyond)} within it."
    missing = list(check.reasons)
    if absent := check.counts.not_measured:
        verb = "was" if absent == 1 else "were"
        missing.insert(0, f"{absent:,} of {_count(sum(check.counts), 'value')} {verb} not measured.")
    return " ".join([text, *missing])


def counted(check: Check) -> str:
    """Return as text how many values passed, were beyond the limit, waived or missing."""
    names = ("passed", "beyond the limit", "waived", "not measured")
    total = sum(check.counts)
    parts = [f"{count:,} {name}" for count, name in zip(check.counts, names, strict=True) if count]
    return f"of {total:,} values, " + ", ".join(parts)


def run_notes(history: GeometryHistory) -> list[str]:
    """Return notes that hold for all checks of a run: attention that the monitor could not measure."""
    share = history.metadata["coverage"]
    short = share < 1  # NaN: nobody counted
    if not short.any():
        return []
    return [
        f"In {int(short.sum())} of {_count(len(share), 'sample')} the monitor could not measure all of the "
        f"model's attention (least: {np.nanmin(share):.0%})."
    ]


def waiver_text(use: WaiverUse) -> str:
    """Return the effect of a waiver as text."""
    values = _count(use.values, "value")
    day = use.waiver.expires.isoformat()
    return {
        "used": f"excuses {values}, until {day}",
        "not needed": f"was not needed: nothing that it covers is beyond the limit (until {day})",
        "matches nothing": "matches nothing: the run has no such stack, layer or head",
        "expired": f"expired on {day} and does not hold"
        + (f": {values} that it covered {'is' if use.values == 1 else 'are'} breached" if use.values else ""),
    }[use.state]


def places_text(places: Places) -> str:
    """Return the layers and heads that are meant as text.

    Example:
        >>> places_text(Places(layers=(0, 1, 2), heads=(5,))), places_text(Places())
        ('head 5 of layers 0 to 2', 'every layer')
    """
    layers = "every layer" if places.layers is None else named_layers(list(places.layers))
    if places.heads is not None:
        heads = named_layers(list(places.heads)).replace("layer", "head")
        layers = f"{heads} of {layers}"
    return layers if places.stacks is None else f"{layers} of {', '.join(places.stacks)}"


def readable(metric: str) -> str:
    """Return a stored name as words.

    Example:
        >>> readable("effective_rank.query"), readable("normalized_entropy")
        ('Effective rank (query)', 'Normalized entropy')
    """
    name, _, part = metric.partition(".")
    words = name.replace("_", " ")
    return f"{words[:1].upper()}{words[1:]}" + (f" ({part})" if part else "")


def exact(limit: float) -> str:
    """Return a limit with all its digits.

    Example:
        >>> exact(0.0205), exact(1000.0), exact(-1e-9)
        ('0.0205', '1,000', '−1e-09')
    """
    return f"{limit:,.15g}".replace("-", "−", 1)


def figure(value: float) -> str:
    """Return a measured number with four significant digits.

    Example:
        >>> figure(0.0199949), figure(12345.6), figure(float("inf"))
        ('0.01999', '12,346', '∞')
    """
    return number(value) if not np.isfinite(value) or abs(value) >= 1 else f"{value:.4g}".replace("-", "−", 1)


def _value(check: Check) -> str:
    worst = check.worst
    assert worst is not None
    if not check.limit.of_change:
        return f"{figure(worst.value)}{_unit(check.spec)}"
    now = worst.value + worst.before if np.isfinite(worst.value) else worst.value
    return f"{figure(worst.before)} → {figure(now)}{_unit(check.spec)}"


def _unit(spec: MetricSpec) -> str:
    return "" if spec.unit == "1" else f" {spec.unit}"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
