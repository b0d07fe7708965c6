"""The trend of many numbers over the last samples, and how unusual the next value of each is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Trend"]

#: Samples that a trend is fitted to at least.
_FITTED = 4

#: Errors that the usual error is taken from at least.
_ERRORS = 4

#: Usual errors at which a value is cut before it enters the line, and its error the usual one.
_CUT = 3.0


class Trend:
    r"""Predict each value from the least-squares line through its last ones, by step, or from their mean.

    .. math:: \hat y = \sum_k w_k y_k, \quad w_k = \frac1n + \frac{(x - \bar x)(x_k - \bar x)}{S_{xx}}, \quad
        e = \frac{y - \hat y}{\sqrt{1 + h}}, \quad h = \frac1n + \frac{(x - \bar x)^2}{S_{xx}}

    The mean is the line without its second terms. The usual error of a value is the root mean square of its
    earlier errors e, weighted exponentially over as many samples as the line has. They are errors of
    predictions: where a value bends, as at the start of a fine-tuning, they are large, so that nothing is
    unusual. A value that departs enters the line, and its error the mean square, cut to three usual errors:
    one outlier moves neither, and a lasting change is the new trend after some samples. After n samples,
    fewer than the s with which a run has settled, errors count :math:`(n / s)^3` as much.

    Args:
        window: Samples of the line: a short one forgets sooner what happened earlier in the run.
        guard: Last samples that enter neither the line nor the usual error: a slow change would hide in them.
        floor: Least usual error, as a share of the value's size.
        absolute: Whether ``floor`` is a number instead of a share.
        settled: Samples with which a run has settled.
        slope: Whether the line has a slope. A mean does not follow a growth, which thus shows for longer.
    """

    def __init__(
        self,
        window: int,
        guard: int,
        floor: float,
        *,
        absolute: bool = False,
        settled: int = 0,
        slope: bool = True,
    ) -> None:
        self._window, self._guard, self._floor, self._absolute = window, guard, floor, absolute
        self._settled, self._slope = settled, slope
        self._count = 0
        self._errors = 0
        self._steps = np.zeros(window + guard)
        #: [window + guard, cell] the last values, the sample of index i in row i modulo their number
        self._values: NDArray[np.float32] = np.zeros((window + guard, 0), np.float32)
        #: [guard, cell] squared errors that the usual one does not know yet
        self._guarded: NDArray[np.float32] = np.zeros((guard, 0), np.float32)
        #: of the samples that the last prediction rests on
        self._rows: NDArray[np.int64] = np.zeros(0, np.int64)
        self._square: NDArray[np.float64] = np.zeros(0)

    def update(
        self, step: int, values: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take the next sample's values.

        Args:
            step: Above the earlier ones.
            values: [cell], NaN where there is none: the line's own prediction stands in.

        Returns:
            [cell] prediction, and [cell] error in usual errors; NaN while there are too few samples.
        """
        if self._square.shape != values.shape:  # the first sample, or a model whose layers changed
            self._count = self._errors = 0
            self._values = np.zeros((self._window + self._guard, len(values)), np.float32)
            self._guarded = np.zeros((self._guard, len(values)), np.float32)
            self._square = np.zeros(len(values))
        prediction = score = np.full(len(values), np.nan)
        entered = values
        if self._count >= _FITTED + self._guard:
            weights, leverage = self._line(step)
            prediction = (weights @ self._values[: len(weights)]).astype(np.float64)
            stretch = np.sqrt(1 + leverage)
            error = _finite((values - prediction) / stretch)
            size = 1.0 if self._absolute else np.abs(prediction)
            usual = np.maximum(np.sqrt(self._square), self._floor * size)
            known = self._errors - self._guard
            if known >= _ERRORS:
                # With few errors the usual one is uncertain, and the start of a run predicts little of what
                # comes next: both make a departure count for less.
                usual = usual * (1 + _ERRORS / known)
                doubt = max(1.0, self._settled / self._count) ** 3
                score = error / np.where(usual > 0, usual * doubt, np.inf)
                error = np.clip(error, -_CUT * usual, _CUT * usual)
            # a cell that had no value so far has no prediction either
            entered = np.where(np.isnan(prediction), values, prediction + error * stretch)
            self._learn(_finite(error) ** 2)
        row = self._count % len(self._steps)
        self._steps[row], self._values[row] = step, entered
        self._count += 1
        return prediction, score

    def beyond(self, cells: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.floating]:
        """Return how far values lie outside the range of the values behind the last prediction.

        Args:
            cells: Indices of some cells.
            values: Their values at the last update.

        Returns:
            As many numbers: positive above the highest, negative below the lowest, else 0.
        """
        held = self._values[self._rows[:, None], cells]
        above, below = values - held.max(axis=0), values - held.min(axis=0)
        return np.where(above > 0, above, np.where(below < 0, below, 0.0))

    def _line(self, step: int) -> tuple[NDArray[np.float32], float]:
        """Return the weight of each row in the prediction at a step, and the prediction's leverage."""
        held = min(self._count, len(self._steps))
        self._rows = rows = np.arange(self._count - held, self._count - self._guard) % len(self._steps)
        weights = np.zeros(held, np.float32)
        weights[rows] = leverage = 1 / len(rows)
        if self._slope:
            steps = self._steps[rows]
            middle = steps.mean()
            offsets, ahead = steps - middle, step - middle
            square = float(offsets @ offsets)
            weights[rows] += ahead * offsets / square
            leverage += ahead**2 / square
        return weights, leverage

    def _learn(self, square: NDArray[np.float64]) -> None:
        """Add a squared error to the usual error, some samples after it occurred."""
        self._errors += 1
        known = self._errors - self._guard
        if self._guard:
            row = known % self._guard
            square, self._guarded[row] = self._guarded[row].astype(np.float64), square
        if known > 0:
            self._square += (square - self._square) / min(known, self._window)

    def state_dict(self) -> dict[str, object]:
        """Return arrays and numbers with which a resumed run goes on."""
        return {
            "count": self._count, "errors": self._errors, "steps": self._steps, "values": self._values,
            "square": self._square, "guarded": self._guarded,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, f"_{name}", value)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``nan_to_num`` of values, which takes ten times as long where all are finite."""
    return values if np.isfinite(values).all() else np.nan_to_num(values)
