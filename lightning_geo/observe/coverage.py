"""How much of a sample's attention was measured, and why the rest was not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_geo.utils.errors import GeometryError

__all__ = ["UNOBSERVED", "Coverage", "LeftOutError"]

#: Why a module that looks like attention gave no numbers.
UNOBSERVED = (
    "It computes attention in a way that shows neither scaled_dot_product_attention nor a softmax over "
    "[batch, head, query, key], so that its numbers are absent. If the model has another implementation "
    "(`attn_implementation`, a flag for fused kernels), choose that."
)


class LeftOutError(GeometryError):
    """An attention call that gives no numbers; the message is the reason, and the sample goes on."""


@dataclass
class Coverage:
    """Attention calls of one sample: seen, measured, and left out with the reason.

    Args:
        seen: Attention calls that were recognised as such.
        measured: Those of them that gave numbers.
        left_out: reason -> paths of the modules that it holds for, each once.
    """

    seen: int = 0
    measured: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, module: str, reason: str) -> None:
        """Count an attention call of ``module`` that gave no numbers, or only some of them."""
        modules = self.left_out.setdefault(reason, [])
        if module not in modules:
            modules.append(module)

    @property
    def share(self) -> float:
        """Measured calls over seen calls; NaN where no attention was seen.

        Example:
            >>> Coverage(seen=4, measured=3).share
            0.75
        """
        return self.measured / self.seen if self.seen else float("nan")

    def merge(self, other: Coverage) -> None:
        """Add what another model's, or another rank's, coverage says."""
        self.seen += other.seen
        self.measured += other.measured
        for reason, modules in other.left_out.items():
            for module in modules:
                self.leave_out(module, reason)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and containers: what a record keeps."""
        return {"seen": self.seen, "measured": self.measured, "left_out": dict(self.left_out)}
