"""The findings of one run: made from its records as they come, told, and acted upon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lightning_geo.analysis.findings.detector import Detector
from lightning_geo.monitor.alerts import Alerts
from lightning_geo.monitor.host import Host
from lightning_geo.storage.finding import SEVERITIES, Finding, Severity
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.formatting import some
from lightning_geo.utils.ranks import from_rank_zero, world_size
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["Alerting"]

#: Actions, as ranks tell each other of them.
_STOP, _CHECKPOINT = 1, 2


class Alerting:
    """Finds, tells and acts for one run. It changes nothing of training unless it was asked to.

    Args:
        alerts: What is looked for; ``None`` for nothing.
        warn_once: Where failures go.
    """

    def __init__(self, alerts: Alerts | None, warn_once: WarnOnce) -> None:
        self._alerts = alerts
        self._warn_once = warn_once
        self._detector = None if alerts is None else Detector(alerts.looked_for)
        self._samples = 0
        #: findings that ended, by rule, stack and first step
        self._ended: set[tuple[str, str, int]] = set()
        #: severity and size of each finding when it was last told
        self._told: dict[tuple[str, str, int], tuple[int, int]] = {}
        #: actions that rank 0 has found due
        self._due = 0
        #: whether a checkpoint is to be saved after the current step, on every rank
        self._saves = False

    @property
    def verdict(self) -> str | None:
        """The run's findings in one line; ``None`` where nothing is looked for."""
        return None if self._detector is None else self._detector.verdict

    def add(self, record: GeometryRecord) -> None:
        """Find what a sample shows, and note it in its record."""
        if self._detector is None:
            return
        with self._warn_once.about("findings could not be made", f"first at step {record.step}"):
            record.findings = self._detector.update(record)
            unchecked = self._detector.unchecked
            rules = () if self._alerts is None else self._alerts.looked_for
            record.looked_for = [rule.name for rule in rules if rule.name not in unchecked]

    def report(self, host: Host, record: GeometryRecord) -> None:
        """Log a sample's findings, and call who wants to know; on rank 0."""
        if self._alerts is None or self._detector is None:
            return
        log, prefix = host.log, self._warn_once.prefix
        self._samples += 1
        unchecked = self._detector.unchecked
        if self._samples == 2 and unchecked:  # the first sample has nothing of what compares samples
            count, rules = len(unchecked), len(self._alerts.looked_for)
            log.info(
                f"{prefix}{count} of {rules} rules are not checked, since their metrics are not "
                f"measured: {some(unchecked)}. `lightning-geo diagnose` names the metrics."
            )
        for finding in record.findings:
            place = *finding.key, finding.since_step
            if finding.until_step is None and place in self._ended:  # told before; the record has it again
                self._ended.remove(place)
                log.info(f"{prefix}step {record.step}: {finding.rule} is back.")
                continue
            if finding.until_step is not None:
                self._ended.add(place)
            elif not self._is_news(place, finding):
                continue
            log.log(_LEVELS[finding.severity] if finding.until_step is None else 20, prefix + _line(finding))
            if self._alerts.notify is not None:
                with self._warn_once.about("`notify` of the alerts failed", f"first at step {record.step}"):
                    self._alerts.notify(finding)
            if finding.until_step is None:
                self._due |= _STOP * _reaches(finding, self._alerts.stop)
                self._due |= _CHECKPOINT * _reaches(finding, self._alerts.checkpoint)

    def _is_news(self, place: tuple[str, str, int], finding: Finding) -> bool:
        """Whether a finding is new, severer, or covers twice as much as when it was told; it is told then."""
        now = SEVERITIES.index(finding.severity), len(finding.heads or finding.layers)
        severity, size = self._told.get(place, (-1, 0))
        if now[0] <= severity and now[1] < 2 * size:
            return False
        self._told[place] = now
        return True

    def act(self, host: Host, device: torch.device) -> None:
        """Do on all ranks what rank 0 has found due; all call it at every sample."""
        if self._alerts is None or (self._alerts.stop is None and self._alerts.checkpoint is None):
            return
        due, self._due = from_rank_zero(self._due, device), 0
        if due & _STOP:
            host.stop_training()
        self._saves |= bool(due & _CHECKPOINT)

    def step_ended(self, host: Host) -> None:
        """Save the checkpoint that a finding asked for, on all ranks."""
        if self._due and world_size() == 1:  # found since the sample; several ranks agree at the next one
            self.act(host, torch.device("cpu"))
        if not self._saves:
            return
        self._saves = False
        with self._warn_once.about("the checkpoint that a finding asked for could not be saved"):
            host.save_checkpoint("geometry")

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state that a resumed run needs, arrays as tensors."""
        if self._detector is None:
            return None
        state: dict[str, Any] = _as_tensors(self._detector.state_dict())
        return {"detector": state, "samples": self._samples}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on with what an earlier session had found; anew where it looked for nothing."""
        if self._detector is not None and state is not None:
            self._detector.load_state_dict(_as_arrays(state["detector"]))
            self._samples = state["samples"]
            for finding in self._detector.findings:
                place = *finding.key, finding.since_step
                self._is_news(place, finding)
                if finding.until_step is not None:
                    self._ended.add(place)

    def copied(self) -> Alerting:
        """Return those of a copy of the run, which goes on by itself."""
        other = Alerting(self._alerts, self._warn_once)
        other.load_state_dict(self.state_dict())
        return other


_LEVELS = {"note": 20, "warning": 30, "critical": 40}


def _line(finding: Finding) -> str:
    """Return a finding in one line of a log."""
    if finding.until_step is not None:
        return f"step {finding.until_step}: {finding.rule} ended, which began at step {finding.since_step}."
    advice = f" Next: {finding.next[0]}" if finding.next else ""
    return f"{finding.severity} since step {finding.since_step}: {finding.message}{advice}"


def _reaches(finding: Finding, severity: Severity | None) -> bool:
    return severity is not None and SEVERITIES.index(finding.severity) >= SEVERITIES.index(severity)


def _as_tensors(value: Any) -> Any:
    """Replace arrays by tensors: a checkpoint is loaded without NumPy's types."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: _as_tensors(inner) for key, inner in value.items()}
    return [_as_tensors(inner) for inner in value] if isinstance(value, list | tuple) else value


def _as_arrays(value: Any) -> Any:
    """Inverse of :func:`_as_tensors`."""
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy().copy()
    if isinstance(value, dict):
        return {key: _as_arrays(inner) for key, inner in value.items()}
    return [_as_arrays(inner) for inner in value] if isinstance(value, list) else value
