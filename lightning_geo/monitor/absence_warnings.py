"""Warnings about metrics that are absent from a sample, each given once with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_geo.measurement.assemble import Computed
from lightning_geo.measurement.importance import NoImportanceError
from lightning_geo.measurement.sample import Measurement
from lightning_geo.observe import UNOBSERVED
from lightning_geo.utils.formatting import some
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["by_reason", "report_gaps", "report_importance", "report_kept_weights", "report_other_heads"]


#: How many bytes of a run's first weights are kept without a word.
_KEPT_BYTES = 1 << 28


def by_reason(absences: Mapping[str, str]) -> str:
    """Modules and the reason of each, those of one reason together."""
    together: dict[str, list[str]] = {}
    for name, reason in absences.items():
        together.setdefault(reason, []).append(name)
    return "; ".join(f"in {some(names)}: {reason}" for reason, names in together.items())


def report_gaps(
    measurement: Measurement, computed: Computed, metrics: Sequence[str], warn_once: WarnOnce
) -> None:
    """Say which modules could not be observed, which calls were left out, and what some metrics lack."""
    for name, kind in measurement.unobserved.items():
        warn_once.report(
            f"no attention could be observed in {name} ({kind})",
            LookupError(UNOBSERVED),
        )
    for reason, modules in measurement.coverage.left_out.items():
        if reason != UNOBSERVED:
            warn_once.warn(f"attention was left out in {some(modules)}", reason, once=reason)
    for name, roles in measurement.unprojected.items():
        warn_once.warn(
            f"the projections of {name} are unknown",
            f"nothing that ran before or after its attention gives its {', '.join(roles)}, or the "
            "parameters are quantised, sharded or offloaded; what is computed from them is absent",
        )
    for name, error in computed.failures.items():
        warn_once.report(f"the metric {name!r} is absent", error)
    known = any("special_mass" in arrays for arrays in computed.stacks.values())
    if "special_mass" in metrics and measurement.takes_ids and not known:
        warn_once.warn(
            "special_mass is absent",
            "the model's config names no bos, eos, cls or sep token; give `special_token_ids=`",
        )


def report_other_heads(before: Mapping[str, Any], now: Mapping[str, Any], warn_once: WarnOnce) -> None:
    """Say that layers have other heads than in the sample before, as after pruning.

    Args:
        before: Structure of the stacks at the sample before.
        now: Structure of the stacks now.
        warn_once: Where it goes.
    """
    changed = [
        f"{stack}/{layer} ({old} to {new})"
        for stack in before.keys() & now.keys()
        for layer, (old, new) in enumerate(zip(before[stack]["heads"], now[stack]["heads"], strict=False))
        if old != new and old and new  # a layer that was left out has none
    ]
    if changed:
        warn_once.warn(
            "the number of heads changed",
            f"in {some(sorted(changed))}. The heads that are left are numbered anew, so none continues an "
            "earlier one; what compares heads with earlier ones is absent there",
        )


def report_kept_weights(start: Mapping[str, Mapping[str, Mapping[str, Tensor]]], warn_once: WarnOnce) -> None:
    """Say how much memory the weights take that ``weight_drift`` is against, where that is much.

    Args:
        start: Weights by model, attention module and role.
        warn_once: Where it goes.
    """
    kept = [x for modules in start.values() for roles in modules.values() for x in roles.values()]
    size = sum(x.numel() * x.element_size() for x in kept)
    if size > _KEPT_BYTES:
        warn_once.warn(
            "weight_drift keeps the attention weights of the run's start",
            f"{size / 1e9:.2f} GB in the memory of every rank and in every checkpoint. Leave `weight_drift` "
            "out of `metrics` if that is too much",
            once="weight_drift keeps",
        )


def report_importance(failures: Iterable[Exception], computed: Computed, warn_once: WarnOnce) -> None:
    """Say why there is no importance, or none in part, in a sample that was to have it."""
    present = any("importance" in arrays for arrays in computed.stacks.values())
    absent = f"importance is absent{' in part' * present}"
    failures = list(failures)
    for error in failures:
        if isinstance(error, NoImportanceError):
            warn_once.warn(absent, str(error))
        else:
            warn_once.report("importance could not be measured", error)
    if not present and not failures:
        warn_once.warn(
            absent,
            "no head changes the loss of a sequence, or its gradient is not finite. A loss that compares the "
            "sequences of a batch (contrastive) is constant for one alone; training's own, which "
            '`source="batch"` takes, may have been scaled too high for its precision',
        )
