"""Checks of arguments. What they raise names the argument, what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lightning_geo.metrics.spec import needs_probe, spec_of

__all__ = ["check_name", "check_one_of", "check_positive", "check_source", "check_token_ids"]


def check_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"Expected `{name}` to be one of {tuple(allowed)} but got {value!r}.")


def check_positive(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"Expected `{name}` to be an integer of at least 1 but got {value!r}.")


def check_name(name: object) -> None:
    """Raise ``ValueError`` unless ``name`` can begin a tag."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"Expected `name` to be made of letters, digits, '_', '.' and '-' but got {name!r}.")


def check_token_ids(ids: object) -> None:
    """Raise ``TypeError`` unless ``special_token_ids`` is ``None`` or integers."""
    if ids is None:
        return
    if isinstance(ids, str) or not isinstance(ids, Iterable) or not all(isinstance(i, int) for i in ids):
        raise TypeError(f"Expected `special_token_ids` to be a list of token ids but got {ids!r}.")


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
