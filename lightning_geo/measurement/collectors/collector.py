"""The base class of collectors: one source of data, from observed events to derived metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lightning_geo.measurement.metric_values import foreign_value, value
from lightning_geo.measurement.sums import LayerSums, add_values
from lightning_geo.metrics.foreign import FOREIGN
from lightning_geo.observe import AttentionCall, BlockCall, CallKey, Projections

if TYPE_CHECKING:
    from lightning_geo.measurement.derived_stack import DerivedStack

__all__ = ["Collector"]


class Collector:
    """Collects the sums of one source of data, and derives metrics from them.

    A sample makes one of each class whose ``offers`` the requested metrics read. It receives events while the
    model runs and adds to the sums of their layers; operations on small tensors may wait until
    :meth:`settle`. Sums of several ranks are added up before :meth:`derive`.

    A new source of data is a subclass, given to :func:`lightning_geo.register_metric` with each metric that
    reads it. Of the events it takes those that it needs, and passes the quantities of each to
    :meth:`add_by_sequence`. Tensors of events are the model's own: a collector must not write to them,
    nor keep them longer than the event.
    An operation whose result the host waits for (``.item()``, ``if tensor:``) costs a synchronisation at
    each event. What a collector raises costs its own metrics alone.

    Args:
        metrics: Stored names of the metrics to measure.

    Attributes:
        failures: The first error of each foreign metric, by name.

    Example:
        The lengths of values, which no built-in quantity tells:

        >>> import torch
        >>> from lightning_geo import Collector, MetricSpec, measure, register_metric
        >>> class ValueLengths(Collector):
        ...     offers = frozenset({"value.length", "value.real"})
        ...
        ...     def attention(self, layer, key, call):
        ...         if call.value is None:  # not known in models that write attention out
        ...             return
        ...         batch, heads, tokens, _ = call.value.shape
        ...         real = torch.ones(batch, tokens, dtype=torch.bool, device=call.value.device)
        ...         lengths = call.value.float().norm(dim=-1)
        ...         lengths = lengths.repeat_interleave(layer.heads // heads, 1)  # grouped queries
        ...         quantities = {
        ...             "value.length": lengths,  # [B, H, Nk]
        ...             "value.real": real if call.key_mask is None else call.key_mask,  # [B, Nk]
        ...         }
        ...         self.add_by_sequence(layer, quantities, (batch, layer.heads))
        >>> spec = MetricSpec(
        ...     name="value_norm", family="values", axes=("layer", "head"), unit="1", range=(0.0, None),
        ...     formula="mean ‖v‖ over real tokens", meaning="A rise: heads write more.", source="here")
        >>> @register_metric(spec, reads=("value.length", "value.real"), collector=ValueLengths)
        ... def value_norm(lengths, real):
        ...     return lengths.masked_fill(~real[:, None], 0).sum(-1) / real.sum(-1)[:, None]
        >>> model = torch.nn.TransformerEncoder(
        ...     torch.nn.TransformerEncoderLayer(16, nhead=2, batch_first=True), num_layers=3)
        >>> measure(model, torch.randn(4, 10, 16), metrics="value_norm")["value_norm"].shape
        (3, 2)
    """

    #: names of the quantities that metric functions may read, see :mod:`lightning_geo.metrics.registry`
    offers: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, metrics: tuple[str, ...]) -> None:
        self.metrics = metrics
        self.failures: dict[str, Exception] = {}

    def value(self, name: str, quantities: Mapping[str, Any], shape: Sequence[int], *parts: str) -> Tensor:
        """Return a metric's value of the quantities of one event, or of several layers.

        Args:
            name: Stored name.
            quantities: By name; the metric's function is called with those that it reads.
            shape: That of the result; of a foreign metric it is checked.
            parts: The part that the function is called with, if it takes one.

        Returns:
            What the function returns; NaN of this shape where a foreign one fails, which is noted in
            ``failures``.
        """
        if name.partition(".")[0] in FOREIGN:
            return foreign_value(name, quantities, shape, parts, self.failures)
        return value(name, quantities, *parts)

    def add_by_sequence(self, layer: LayerSums, quantities: Mapping[str, Any], shape: Sequence[int]) -> None:
        """Add the values that all metrics of this collector have of one event, by sequence.

        A layer's number is the mean over all sequences of which a value is finite.

        Args:
            layer: The sums that the event came with.
            quantities: By name.
            shape: ``(B, H)``, or ``(B,)`` for metrics of layers: one value for each sequence.
        """
        values = torch.stack([self.value(name, quantities, shape) for name in self.metrics])
        add_values([layer], type(self).__name__, self.metrics, values[None])

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
