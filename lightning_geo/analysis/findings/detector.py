"""Applies rules to a run's samples one by one, in the same way during training and afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.evaluation import Evaluation, Shown, evaluation_of
from lightning_geo.analysis.findings.rule import Rule
from lightning_geo.analysis.findings.words import described
from lightning_geo.storage.finding import SEVERITIES, Finding, verdict
from lightning_geo.storage.record import GeometryRecord

__all__ = ["Detector"]

#: A finding that ended comes back as the same one within so many times the samples that it needs to open.
_AGAIN = 4

#: A finding is updated where it covers so many times the layers or heads that it did.
_WORSE = 1.25


class Detector:
    """Turn a run's records into findings.

    A finding opens when a rule holds in some place for several samples in a row, is updated when it gets
    worse, and ends after as many samples without it. All places of a stack that show the same are one
    finding.

    Args:
        rules: The rules to check.

    Example:
        >>> import numpy as np
        >>> from lightning_geo.analysis.findings.rule import Level
        >>> low = Rule("low", ("entropy",), Level(at_most=0.1), "{where}: entropy is {value}.", samples=1)
        >>> detector = Detector([low])
        >>> record = GeometryRecord({"encoder": {"entropy": np.array([[0.05, 2.0]])}}, step=50)
        >>> [finding.message for finding in detector.update(record)]
        ['Head 0 of layer 0: entropy is 0.050.']
        >>> detector.update(record)  # nothing new
        []
    """

    def __init__(self, rules: Iterable[Rule] = tuple(RULES.values())) -> None:
        self._rules = {rule.name: rule for rule in rules}
        #: all findings so far, in the order in which they opened
        self.findings: list[Finding] = []
        self._places: dict[tuple[str, str], _Place] = {}
        self._measured: set[str] = set()
        #: fingerprint of the inputs that the last sample was taken on
        self._probe = ""

    def update(self, record: GeometryRecord) -> list[Finding]:
        """Take the next sample.

        Returns:
            The findings that opened, got worse, ended or came back with it.
        """
        if record.probe_fingerprint != self._probe:
            for known in self._places.values():
                known.start_anew()  # numbers of other inputs do not continue the earlier ones
            self._probe = record.probe_fingerprint
        changed = []
        for stack, arrays in record.stacks.items():
            self._measured.update(arrays)
            for rule in self._rules.values():
                place = self._places.get((rule.name, stack))
                if place is None:
                    place = self._places[rule.name, stack] = _Place(rule)
                shown = place.evaluation.update(record, stack, arrays)
                if shown is not None and place.next(self.findings, stack, record.step, shown):
                    assert place.index is not None
                    changed.append(self.findings[place.index])
        return changed

    @property
    def unchecked(self) -> dict[str, tuple[str, ...]]:
        """Rules that no sample could be checked for: rule -> the metrics of which it needs at least one."""
        return {
            name: rule.metrics
            for name, rule in self._rules.items()
            if rule.metrics and not self._measured.intersection(rule.metrics)
        }

    @property
    def verdict(self) -> str:
        """The findings in one line."""
        return verdict(self.findings, checked=len(self.unchecked) < len(self._rules))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: containers, numbers, text and arrays."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "places": [[*key, place.state_dict()] for key, place in self._places.items()],
            "measured": sorted(self._measured),
            "probe": self._probe,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; the state of a rule that is no longer checked is left out."""
        self.findings = [Finding.from_dict(values) for values in state["findings"]]
        self._measured, self._probe = set(state["measured"]), state["probe"]
        self._places = {}
        for name, stack, values in state["places"]:
            if name in self._rules:
                self._places[name, stack] = place = _Place(self._rules[name])
                place.load_state_dict(values)


class _Place:
    """One rule in one stack: for how long it has held, and the finding that came of it."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.evaluation: Evaluation
        self.start_anew()
        #: of its latest finding among all of the run's
        self.index: int | None = None
        #: layers or heads of that finding when it was last reported
        self._reported = 0
        #: samples in a row that did not show it
        self._without = 0
        #: samples since the finding ended
        self._ended = 0
        #: the last sampled steps, as many as the rule must hold for
        self._steps: list[int] = []

    def start_anew(self) -> None:
        """Compare later samples with each other only; keep the finding."""
        self.evaluation = evaluation_of(self._rule)

    def next(self, findings: list[Finding], stack: str, step: int, shown: Shown) -> bool:
        """Open, update or end the place's finding; return whether that is news.

        Args:
            findings: All of the run's.
            stack: The place's.
            step: The sample's.
            shown: What the rule's evaluation gave for the sample.
        """
        rule, size = self._rule, int(shown.cells.sum())
        self._steps = [*self._steps, step][-rule.samples :]
        latest = None if self.index is None else findings[self.index]
        self._ended = 0 if latest is None or latest.until_step is None else self._ended + 1
        if not size:
            self._without = 0 if shown.holds else self._without + 1
            if latest is None or latest.until_step is not None or self._without < rule.samples:
                return False
            findings[self.index] = latest.closed(step)  # type: ignore[index]
            return True
        self._without = 0
        now = described(rule, stack, self._steps[0], shown)
        if latest is None or (latest.until_step is not None and self._ended > _AGAIN * rule.samples):
            self.index, self._reported = len(findings), size
            findings.append(now)
            return True
        severer = SEVERITIES.index(now.severity) > SEVERITIES.index(latest.severity)
        if severer or size >= _WORSE * self._reported:
            self._reported = size
            severity = now.severity if severer else latest.severity
            findings[self.index] = replace(now, since_step=latest.since_step, severity=severity)  # type: ignore[index]
            return True
        if latest.until_step is None:
            return False
        findings[self.index] = replace(latest, until_step=None)  # type: ignore[index]
        return True  # the finding is open again: readers of the record must not take it for ended

    def state_dict(self) -> dict[str, Any]:
        """Return containers, numbers and arrays."""
        return {
            "index": self.index, "reported": self._reported, "without": self._without, "ended": self._ended,
            "steps": self._steps, "rule": repr(self._rule), "evaluation": self.evaluation.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.index, self._reported, self._without = state["index"], state["reported"], state["without"]
        self._ended, self._steps = state["ended"], list(state["steps"])
        if state["rule"] == repr(self._rule):  # one that was changed meanwhile starts anew
            self.evaluation.load_state_dict(state["evaluation"])
