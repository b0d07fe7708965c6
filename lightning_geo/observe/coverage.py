"""Counts the attention that a sample measured, and keeps the reasons for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lightning_geo.utils.errors import GeometryError

__all__ = ["UNOBSERVED", "Coverage", "LeftOutError"]

#: Reason for a module that looks like attention but showed none.
UNOBSERVED = (
    "It calls neither scaled_dot_product_attention nor a softmax over [batch, head, query, key]: its "
    "attention is hidden, and its metrics are absent. If the model has another implementation "
    "(`attn_implementation`, a flag for fused kernels), choose that."
)

#: Reason for a call that was measured with a mask that it did not have.
_OTHER_MASK = (
    "its mask had another structure than in the sample before, so that metrics of attention rows are absent "
    "from this sample; later samples read the whole mask"
)


class LeftOutError(GeometryError):
    """An attention call cannot be measured. The message is the reason; the sample continues."""


@dataclass
class Coverage:
    """Attention calls of one sample: seen, measured, and left out with the reason.

    Args:
        seen: Recognised attention calls.
        measured: Measured attention calls among them.
        left_out: reason -> paths of the modules that it applies to, each once.
    """

    seen: int = 0
    measured: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, module: str, reason: str) -> None:
        """Record why an attention call of ``module`` lacks all or some of its metrics."""
        modules = self.left_out.setdefault(reason, [])
        if module not in modules:
            modules.append(module)

    def withdraw(self, modules: Iterable[str]) -> None:
        """Count measured calls of these modules as left out: their masks were not as assumed."""
        for module in modules:
            self.leave_out(module, _OTHER_MASK)
            self.measured = max(0, self.measured - 1)

    @property
    def share(self) -> float:
        """Fraction of seen calls that were measured; NaN if none was seen.

        Example:
            >>> Coverage(seen=4, measured=3).share
            0.75
        """
        return self.measured / self.seen if self.seen else float("nan")

    def merge(self, other: Coverage) -> None:
        """Add the coverage of another model or rank."""
        self.seen += other.seen
        self.measured += other.measured
        for reason, modules in other.left_out.items():
            for module in modules:
                self.leave_out(module, reason)

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and containers for a record."""
        return {"seen": self.seen, "measured": self.measured, "left_out": dict(self.left_out)}
