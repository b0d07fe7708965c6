"""NumPy arrays, as signatures name them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array"]

#: Of numbers in double precision, whatever their axes.
Array = NDArray[np.float64]
