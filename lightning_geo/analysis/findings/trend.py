"""The linear trend of many numbers over the last samples, and how unusual the next value of each is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Trend"]

#: Samples that a trend is fitted to at least.
_FITTED = 4

#: Errors that the usual error is taken from at least.
_ERRORS = 4

#: Samples of the line to each of those whose errors make the usual one: it forgets a start sooner.
_FORGETS = 4

#: Usual errors at which a value is cut before it enters the line, and its error the usual one.
_CUT = 3.0


class Trend:
    r"""Predict each value from the least-squares line through its last ones, by step.

    .. math:: \hat y = \sum_k w_k y_k, \quad w_k = \frac1n + \frac{(x - \bar x)(x_k - \bar x)}{S_{xx}}, \quad
        e = \frac{y - \hat y}{\sqrt{1 + h}}, \quad h = \frac1n + \frac{(x - \bar x)^2}{S_{xx}}

    The usual error of a value is the root mean square of its earlier errors e, weighted exponentially over a
    quarter of the window. They are errors of predictions: where a value bends, as at the start of a
    fine-tuning, they are large, so that nothing is unusual. A value that departs enters the line, and its
    error the mean square, cut to three usual errors: one outlier moves neither, and a lasting change is the
    new trend after some samples. With n samples, fewer than the window's w, errors count
    :math:`(n / w)^2` as much.

    Args:
        window: Samples of the line.
        floor: Least usual error, as a share of the value's size.
        absolute: Whether ``floor`` is a number instead of a share.
    """

    def __init__(self, window: int, floor: float, *, absolute: bool = False) -> None:
        self._window, self._floor, self._absolute = window, floor, absolute
        self._count = 0
        self._errors = 0
        self._steps = np.zeros(window)
        #: [window, cell] the last values, the sample of index i in row i modulo the window
        self._values: NDArray[np.float32] = np.zeros((window, 0), np.float32)
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
            self._values = np.zeros((self._window, len(values)), np.float32)
            self._square = np.zeros(len(values))
        prediction = score = np.full(len(values), np.nan)
        entered = values
        if self._count >= _FITTED:
            weights, leverage = self._line(step)
            prediction = (weights.astype(np.float32) @ self._values[: len(weights)]).astype(np.float64)
            stretch = np.sqrt(1 + leverage)
            error = np.nan_to_num((values - prediction) / stretch)
            size = 1.0 if self._absolute else np.abs(prediction)
            usual = np.maximum(np.sqrt(self._square), self._floor * size)
            if self._errors >= _ERRORS:
                usual = usual * (1 + _ERRORS / self._errors)  # few errors say little of the usual one
                # and a line through few samples, at the start of a run, says little of what comes next
                doubt = max(1.0, self._window / self._count) ** 2
                score = error / np.where(usual > 0, usual * doubt, np.inf)
                error = np.clip(error, -_CUT * usual, _CUT * usual)
            # a cell that had no value so far has no prediction either
            entered = np.where(np.isnan(prediction), values, prediction + error * stretch)
            self._errors += 1
            self._square += (np.nan_to_num(error) ** 2 - self._square) / min(
                self._errors, self._window / _FORGETS
            )
        row = self._count % self._window
        self._steps[row], self._values[row] = step, entered
        self._count += 1
        return prediction, score

    def _line(self, step: int) -> tuple[NDArray[np.float64], float]:
        """Return the weight of each sample in the prediction at a step, and the prediction's leverage."""
        steps = self._steps[: min(self._count, self._window)]
        offsets = steps - steps.mean()
        ahead = step - steps.mean()
        square = float(offsets @ offsets)
        return 1 / len(steps) + ahead * offsets / square, 1 / len(steps) + ahead**2 / square

    def state_dict(self) -> dict[str, object]:
        """Return arrays and numbers with which a resumed run goes on."""
        return {
            "count": self._count, "errors": self._errors, "steps": self._steps, "values": self._values,
            "square": self._square,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, f"_{name}", value)
