"""Alerts: what a monitor looks for while a run trains, whom it tells, and what it does about it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_geo.analysis.findings.rule import Rule
from lightning_geo.analysis.findings.rule_set import read_rules, rule_set
from lightning_geo.storage.finding import SEVERITIES, Finding, Severity
from lightning_geo.utils.arguments import check_type
from lightning_geo.utils.errors import ArgumentError, ArgumentTypeError

__all__ = ["Alerts", "AlertsArgument", "alerts_of"]


@dataclass(frozen=True)
class Alerts:
    """What a monitor looks for, whom it tells besides the logs and loggers, and what it does about it.

    Args:
        rules: Rules besides the built-in ones.
        change: Name of a rule -> its fields with new values: ``{"entropy_collapse": {"at_most": 0.02}}``.
        silence: Names of rules that are not looked for.
        file: YAML with ``rules``, ``change`` and ``silence``, instead of these arguments.
        notify: Called on rank 0 with each finding that opened, became severer or twice as large, or ended;
            what it raises is a warning.
        stop: Severity from which a finding stops training, as EarlyStopping would: after the current step
            and its validation, with the checkpoints that are due. Several ranks on devices, which make
            records late, stop at the next sample. ``None`` for never.
        checkpoint: Severity from which a finding has a checkpoint saved, beside those of the trainer's
            ModelCheckpoint, after the current step. ``None`` for never.

    Raises:
        ValueError: If a value does not fit, or ``file`` is given together with ``rules``, ``change`` or
            ``silence``.
        RunError: If the file cannot be read or is not valid.

    Example:
        >>> alerts = Alerts(change={"departure": {"spreads": 10}}, silence=["twin_heads"], stop="critical")
        >>> "twin_heads" in {rule.name for rule in alerts.looked_for}
        False
    """

    rules: Sequence[Rule] = ()
    change: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    silence: Collection[str] = ()
    file: str | os.PathLike[str] | None = None
    notify: Callable[[Finding], object] | None = None
    stop: Severity | None = None
    checkpoint: Severity | None = None

    def __post_init__(self) -> None:
        for name in ("stop", "checkpoint"):
            value = getattr(self, name)
            if value is not None and value not in SEVERITIES:
                raise ArgumentError(f"Expected `{name}` to be one of {SEVERITIES} or None but got {value!r}.")
        if self.notify is not None and not callable(self.notify):
            raise ArgumentError(f"Expected `notify` to be callable or None but got {self.notify!r}.")
        if self.file is not None:
            check_type("file", self.file, (str, os.PathLike), "the path of a file of rules")
        if self.file is not None and (self.rules or self.change or self.silence):
            raise ArgumentError(
                "Expected `file`, or `rules`, `change` and `silence`, but got both. Write them into the file."
            )

        self.looked_for  # noqa: B018, what does not fit is refused here

    @functools.cached_property
    def looked_for(self) -> tuple[Rule, ...]:
        """All rules, as they were when the object was made."""
        if self.file is not None:
            return read_rules(self.file)
        return rule_set(self.rules, self.change, self.silence)


AlertsArgument = Alerts | bool | str | os.PathLike[str]


def alerts_of(argument: AlertsArgument) -> Alerts | None:
    """Return what a monitor's argument ``alerts`` means: ``None`` for no alerts.

    Raises:
        TypeError: If it is of another type.
        ValueError: See :class:`Alerts`.
    """
    if isinstance(argument, Alerts):
        return argument
    if isinstance(argument, bool):
        return Alerts() if argument else None
    if isinstance(argument, str | os.PathLike):
        return Alerts(file=argument)
    raise ArgumentTypeError(
        "Expected `alerts` to be True, False, the path of a file of rules, or Alerts(…), but got "
        f"{argument!r}."
    )
