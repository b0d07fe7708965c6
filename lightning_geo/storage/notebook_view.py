"""How a record and a run show themselves in a notebook; the room ``report`` draws."""

from __future__ import annotations

from typing import Literal

from lightning_geo.storage.diagnosis import Diagnosis
from lightning_geo.utils.drawing import Drawing, Page
from lightning_geo.utils.views import view

__all__ = ["ShownHistory", "ShownRecord"]


class ShownRecord:
    """What a record draws."""

    def plot(self, metric: str | None = None) -> Drawing:
        """Draw a metric as a map of layers and heads, or bars of layers.

        Args:
            metric: What ``record[metric]`` takes; ``None`` for the headline metrics.

        Raises:
            KeyError: If the record lacks the metric.
            ValueError: If it has no value.

        Example:
            >>> import numpy as np
            >>> from lightning_geo import GeometryRecord
            >>> GeometryRecord({"encoder": {"entropy": np.ones((2, 4))}}, step=50).plot("entropy")
            Drawing('entropy at step 50')
        """
        drawing: Drawing = view(self, "plot", metric)
        return drawing

    def _repr_html_(self) -> str:
        return str(view(self, "html"))


class ShownHistory:
    """What a run draws, and what is wrong or unusual in it."""

    def plot(
        self, metric: str, *, by: Literal["model", "layer", "head"] = "layer", layer: int | None = None
    ) -> Drawing:
        """Draw a metric over the run.

        Args:
            metric: What ``history[metric]`` takes; roles and stages of a bare name stand side by side.
            by: ``"layer"`` for layers × samples, with the model's mean (or maximum) below; ``"head"`` for the
                heads at the first and the last sample and what they changed by; ``"model"`` for the mean
                alone.
            layer: With ``by="head"``: the heads of this layer × samples.

        Raises:
            KeyError: If the run lacks the metric.
            ValueError: If it has no value, or ``by`` and ``layer`` do not fit it.

        Example:
            >>> import numpy as np
            >>> from lightning_geo import GeometryHistory, GeometryRecord
            >>> entropy = {0: np.ones((2, 4)), 50: np.zeros((2, 4))}
            >>> records = [GeometryRecord({"encoder": {"entropy": e}}, step=s) for s, e in entropy.items()]
            >>> GeometryHistory(records).plot("entropy", by="head", layer=1)
            Drawing('entropy of the heads of layer 1')
        """
        drawing: Drawing = view(self, "plot", metric, by=by, layer=layer)
        return drawing

    def findings(self) -> Diagnosis:
        """Return what is wrong or unusual in the run, as :func:`~lightning_geo.diagnose` finds it.

        Example:
            >>> import numpy as np
            >>> from lightning_geo import GeometryHistory, GeometryRecord
            >>> entropy = {"normalized_entropy": np.full((2, 4), 0.7)}
            >>> GeometryHistory([GeometryRecord({"encoder": entropy})]).findings().verdict
            'Nothing unusual.'
        """
        diagnosis: Diagnosis = view(self, "findings")
        return diagnosis

    def report(self, *others: ShownHistory) -> Page:
        """Return the HTML report on the run, as ``lightning-geo report`` writes it.

        Args:
            others: Runs of the same model to compare with this one.

        Raises:
            RunError: If the runs are of different models.
        """
        page: Page = view(self, "report", *others)
        return page

    def _repr_html_(self) -> str:
        return str(view(self, "html"))
