"""Arguments of the monitor that bear on each other."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_geo.metrics.selection import needs_probe, spec_of

__all__ = ["check_source"]


def check_source(
    source: str, metrics: Sequence[str], probe: object, baseline: object, loss_fn: object
) -> None:
    """Raise ``ValueError`` where one argument makes another useless.

    Args:
        source: ``"probe"`` or ``"batch"``.
        metrics: Stored names.
        probe: As given to the monitor.
        baseline: As given to the monitor.
        loss_fn: As given to the monitor.
    """
    drifts = any(spec_of(name).name == "drift" for name in metrics)
    if source == "batch":
        for name, given in (("probe", probe), ("baseline", baseline), ("loss_fn", loss_fn)):
            if given is not None:
                raise ValueError(
                    f'Expected `{name}` only with `source="probe"` but got both `{name}` and '
                    '`source="batch"`, which looks at the training batches alone. Leave one of them out.'
                )
        if all(map(needs_probe, metrics)):
            raise ValueError(
                "Expected `metrics` to name more than `drift` and `velocity` with "
                f'`source="batch"` but got {tuple(metrics)}: they need a probe. Use `source="probe"`.'
            )
    elif baseline is not None and not drifts:
        raise ValueError(
            "Expected `metrics` to include `drift` where `baseline` is given, since nothing else is measured "
            f"against it, but got {tuple(metrics)}."
        )
