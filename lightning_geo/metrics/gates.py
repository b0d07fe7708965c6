"""Gates: what kinds of heads there are, and which a head is by its margins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GATES", "KINDS", "MIXED", "gate_labels"]


#: The gates of heads, see :mod:`lightning_geo.functional.gates`, and the name of a head that fits none.
GATES = ("open", "closed", "instance", "backward", "forward", "directional", "cluster")


MIXED = "mixed"


#: All kinds of heads, in the order of labels.
KINDS = (*GATES, MIXED)


def gate_labels(margins: NDArray[Any]) -> NDArray[np.int64]:
    """The gate of each head, as :func:`lightning_geo.functional.gate_labels` gives it, without torch.

    Args:
        margins: [..., 7] in the order of :data:`GATES`.

    Returns:
        [...] indices of :data:`KINDS`; -1 where margins are NaN.

    Example:
        >>> gate_labels(np.array([[0.1, 0.05, -1, -1, -1, -1, -1], [-0.2, -0.1, -1, -1, -1, -1, -1]]))
        array([0, 7])
    """
    best, unknown = margins.max(axis=-1), np.isnan(margins).any(axis=-1)
    label = np.where(best < 0, len(GATES), margins.argmax(axis=-1))
    return np.where(unknown, -1, label)
