"""The base class of collectors: one source of data, from observed events to derived metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from lightning_geo.measurement.sums import LayerSums
from lightning_geo.observe import AttentionCall, BlockCall, CallKey, Projections

if TYPE_CHECKING:
    from lightning_geo.measurement.derived import DerivedStack

__all__ = ["Collector"]


class Collector:
    """Collects the sums of one source of data, and derives metrics from them.

    A sample makes one of each class whose ``offers`` the requested metrics read. It receives events while the
    model runs and adds to the sums of their layers; operations on small tensors may wait until
    :meth:`settle`. Sums of several ranks are added up before :meth:`derive`.

    Args:
        metrics: Stored names of the metrics to measure.
    """

    #: names of the quantities that metric functions may read, see :mod:`lightning_geo.metrics.registry`
    offers: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, metrics: tuple[str, ...]) -> None:
        self.metrics = metrics

    def attention(self, layer: LayerSums, key: CallKey, call: AttentionCall) -> None:
        """Add an attention call, or the part of it that holds documents of one length."""

    def attention_output(self, layer: LayerSums, output: Tensor, mask: Tensor | None) -> None:
        """Add what the attention module of a layer wrote, [B, N, d], real tokens by ``mask`` [B, N]."""

    def block(self, layer: LayerSums, block: BlockCall) -> None:
        """Add a layer's input and output."""

    def projections(self, layer: LayerSums, key: CallKey, projections: Projections) -> None:
        """Add the projections of an attention call, which come after it."""

    def settle(self) -> None:
        """Add what has waited to the sums."""

    def zero(self) -> None:
        """Forget what was counted; the sums are zeroed by the caller."""

    def derive(self, stack: DerivedStack) -> None:
        """Derive what is more than a mean over sequences, for all layers of a stack at once."""
