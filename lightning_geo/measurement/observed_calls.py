"""The attention calls that a sample's taps have seen, those left out, and the reasons."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_geo.measurement.chosen_layers import ChosenLayers
from lightning_geo.measurement.row_sampling import ESTIMATED
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.observe import UNOBSERVED, Coverage, Tap
from lightning_geo.utils.formatting import some

__all__ = ["ObservedCalls"]


class ObservedCalls:
    """Attention calls of a sample, those measured and those left out.

    Args:
        taps: By model.
        choices: By model, the layers that are asked for.
        statistics: By model, what was measured.
    """

    def __init__(
        self,
        taps: Mapping[str, Tap],
        choices: Mapping[str, ChosenLayers],
        statistics: Mapping[str, SampleStatistics],
    ) -> None:
        self._taps = dict(taps)
        self._choices = dict(choices)
        self._statistics = dict(statistics)
        #: of all ranks, once they are merged
        self._merged: Coverage | None = None

    @property
    def failures(self) -> list[Exception]:
        """Errors of the observation."""
        return [failure for tap in self._taps.values() for failure in tap.failures]

    @property
    def seconds(self) -> float:
        """Seconds that the observation took."""
        return sum(tap.seconds for tap in self._taps.values())

    @property
    def takes_ids(self) -> bool:
        """Whether any model takes token ids."""
        return any(tap.takes_ids for tap in self._taps.values())

    @property
    def unobserved(self) -> dict[str, str]:
        """Modules that look like attention but showed none, for an unknown reason: name -> class."""
        modules_without: dict[str, str] = {}
        for name, tap in self._taps.items():
            left_out = [f"{module}." for modules in tap.coverage.left_out.values() for module in modules]
            for path, kind in tap.unobserved.items():
                known = any(module.startswith(f"{path}." * bool(path)) for module in left_out)
                if self._choices[name].asks(path) and not known:
                    modules_without[self._named(name, path)] = kind
        return modules_without

    @property
    def coverage(self) -> Coverage:
        """Attention calls seen, measured and left out, of all models; of all ranks once they are merged."""
        if self._merged is not None:
            return self._merged
        merged = Coverage()
        for name, tap in self._taps.items():
            own = tap.coverage
            named = {
                reason: [self._named(name, path) for path in modules]
                for reason, modules in own.left_out.items()
            }
            merged.merge(Coverage(own.seen, own.measured, named))
        for name, statistics in self._statistics.items():
            for path in statistics.estimated:
                merged.leave_out(self._named(name, path), ESTIMATED)
        for module in self.unobserved:  # the module ran, but its inside cannot be observed
            merged.seen += 1
            merged.leave_out(module, UNOBSERVED)
        return merged

    def _named(self, name: str, path: str) -> str:
        return self._taps[name].name_of(path, self._prefix(name))

    def _prefix(self, name: str) -> str:
        """Return the prefix of the names of a model's modules: its own name if there are several models."""
        return name if len(self._taps) > 1 else ""

    @property
    def reasons(self) -> str:
        """Why attention was left out, with the modules; empty if none was."""
        left_out = {reason: m for reason, m in self.coverage.left_out.items() if reason != UNOBSERVED}
        return "; ".join(f"in {some(modules)}: {reason}" for reason, modules in left_out.items())

    @property
    def passed_over(self) -> int:
        """Number of calls that were not part of training."""
        return sum(tap.passed_over for tap in self._taps.values())

    def pass_over(self, name: str) -> None:
        """Count such a call of the model of that name."""
        self._taps[name].passed_over += 1

    @property
    def scripted(self) -> list[str]:
        """TorchScript modules that compute attention, by path."""
        return [name or "the model itself" for tap in self._taps.values() for name in tap.scripted]

    def why_nothing(self) -> str:
        """Why no attention was seen."""
        reason = f"Attention-like modules that ran: {self.unobserved or 'none'}."
        if self.passed_over:
            reason = (
                "Every call of the model ran under `no_grad`, so that none is part of training; "
                '`source="probe"` measures such a model.'
            )
        if self.scripted:
            reason += (
                f" TorchScript computes attention in {', '.join(self.scripted)} and hides its inside: "
                "observe the module before `torch.jit.script`."
            )
        return reason

    @property
    def unprojected(self) -> dict[str, list[str]]:
        """Attention modules and the roles whose projections could not be found."""
        return {
            self._named(name, path): roles
            for name, tap in self._taps.items()
            for path, roles in tap.unprojected.items()
        }
