"""The state of a monitor's run, and the part of it that a checkpoint carries."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from lightning_geo.measurement.assemble import Bases
from lightning_geo.utils.errors import DamagedError

__all__ = ["RunState"]

#: Changes with what the fields of a checkpoint's state mean.
_FORMAT = 2


@dataclass
class RunState:
    """Plain containers, numbers and tensors: Lightning loads nothing else by default.

    Args:
        baseline: Bases that drift is against.
        previous: Bases that velocity is against.
        models: Names of the observed models, once a sample has chosen them.
        step: That of the last sample.
        ended: Whether the run had come to its end.
        summaries: The last sample's model summaries by tag.
        samples: How many were taken.
        cost: Seconds that they took.
        elapsed: Seconds that the run took.
        start: Weights at the run's start on the CPU, by model, attention module and role.
        dropped: How many samples failed before the first that did not.
        version: Name of the directory of the run's record, where no logger has a place for it.
        picture_scales: Ends of the scales of the run's pictures, by tag.
    """

    baseline: Bases | None = None
    previous: Bases | None = None
    models: list[str] = field(default_factory=list)
    step: int | None = None
    ended: bool = False
    summaries: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    cost: float = 0.0
    elapsed: float = 0.0
    start: dict[str, dict[str, dict[str, Tensor]]] = field(default_factory=dict)
    dropped: int = 0
    version: str | None = None
    picture_scales: dict[str, list[float]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Its fields by name, tensors on the CPU."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("baseline", "previous"):
            values[name] = None if values[name] is None else _bases_on(torch.device("cpu"), values[name])
        return {"format": _FORMAT} | values

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RunState:
        """Inverse of :meth:`state_dict`.

        Raises:
            ValueError: If another version wrote it.
        """
        if state.get("format") != _FORMAT:
            raise DamagedError(
                f"it has format {state.get('format')!r}, which another version of lightning_geo wrote; "
                f"this one reads {_FORMAT}"
            )
        return cls(**{f.name: state[f.name] for f in fields(cls)})


def _bases_on(device: torch.device, bases: Bases) -> Bases:
    """Bases of subspaces on a device."""
    return {stack: {role: u.to(device) for role, u in roles.items()} for stack, roles in bases.items()}
