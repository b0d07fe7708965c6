"""Observing the layers of ``layers=`` alone, once a fixed probe has shown that this changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.measurement.sums import LayerSums
from lightning_geo.observe import CallKey, Tap
from lightning_geo.observe.attention_events import Asked
from lightning_geo.observe.layers.numbering import elements_of
from lightning_geo.observe.narrow_tap import NarrowTap
from lightning_geo.observe.same_events import EventComparison, OneOfTwo

__all__ = ["Narrowing"]


class Narrowing:
    """Observes one model on the same inputs again and again, from some sample on in its asked layers alone.

    The first sample is observed whole and shows which blocks the asked calls are in. The second is observed
    by two taps at once: the whole one, and one that observes these blocks alone. If both showed the same, bit
    for bit, later samples use the second; if not, all samples stay whole. A run that differs from the
    compared one costs that sample, and later ones are whole again.

    Args:
        tap: The tap that observes the model whole.
    """

    def __init__(self, tap: Tap) -> None:
        self._whole = tap
        self._forget()

    def _forget(self) -> None:
        self._possible = True
        self._narrow: NarrowTap | None = None
        #: heads of every call of a sample, in order
        self._heads: dict[CallKey, int] = {}
        #: whether the observer reads projections, for those to which both taps showed the same
        self._proved: set[bool] = set()
        #: of the last sample that both taps observed; None once it is decided, and if that sample failed
        self._comparison: EventComparison | None = None
        #: the comparison that this sample makes
        self._comparing: EventComparison | None = None
        #: whether this sample observes the asked layers alone
        self._alone = False

    def begin(self, statistics: SampleStatistics, asked: Asked) -> Tap:
        """Begin a sample, and return the tap that counts."""
        if self._narrow is not None and self._narrow.outdated:
            self._forget()
        self._conclude()
        self._alone, self._comparing = False, None
        if self._narrow is None or self._comparison is not None:
            return self._whole
        self._alone = statistics.reads_projections in self._proved
        if not self._alone:
            self._comparing = EventComparison(statistics.reads_projections)
        self._narrow.beside = None if self._alone else self._whole
        self._narrow.begin_sample(asked, timed=False)  # a sample of fixed inputs is timed as a whole
        return self._narrow if self._alone else self._whole

    def _conclude(self) -> None:
        """Decide by what the last sample has shown, once the device has answered."""
        comparison = self._comparison
        holds = True if comparison is None else comparison.holds
        if self._narrow is not None and (self._narrow.failures or holds is False):
            self._give_up()
        elif comparison is not None and holds:
            self._proved.add(comparison.projections)
            self._comparison = None

    def _give_up(self) -> None:
        self._possible, self._narrow, self._comparison = False, None, None

    @contextmanager
    def open(self, statistics: SampleStatistics, **options: Any) -> Iterator[Tap]:
        """Show the model's attention calls to the statistics while the context is open; see :class:`.Tap`."""
        narrow, comparing = self._narrow, self._comparing
        if narrow is not None and self._alone:
            with narrow.open(statistics, **options) as tap:
                yield tap
            if narrow.ran:
                statistics.expect(self._heads)
        elif narrow is not None and comparing is not None:
            self._comparison = None
            both = OneOfTwo(comparing, narrow.covers, statistics, statistics)
            other = OneOfTwo(comparing, narrow.covers, None, statistics)
            with self._whole.open(both, **options) as tap, narrow.open(other, **options):
                yield tap
            comparing.settle()
            comparing.differs |= narrow.coverage.left_out != self._whole.coverage.left_out
            self._comparison = comparing
        else:
            with self._whole.open(statistics, **options) as tap:
                yield tap

    def learn(self, layers: Mapping[CallKey, LayerSums], asked: Callable[[CallKey], bool]) -> None:
        """Find the blocks to observe, after the first sample; later ones are to show the same calls.

        Args:
            layers: Every call of the sample, in order.
            asked: Whether a call is reported.
        """
        heads = {key: layer.heads for key, layer in layers.items()}
        if not self._possible or list(heads.items()) == list(self._heads.items()):
            return
        known, self._heads = self._heads, heads
        if known:  # the same inputs showed other calls
            self._give_up()
            return
        modules = self._whole.modules
        blocks = {key.module: next((e.name for e in elements_of(key.module, modules)), "") for key in heads}
        requested = {blocks[key.module] for key in heads if asked(key)}
        if "" not in requested and not requested.issuperset(blocks.values()):
            self._narrow = NarrowTap(self._whole, requested, {*blocks, *blocks.values()} - {""})
