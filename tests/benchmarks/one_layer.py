"""What a sample of the last of 24 layers adds to the model's forward, over what a one-layer model's adds.

``python tests/benchmarks/one_layer.py [--batch 16] [--tokens 128]``
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import BertConfig, BertModel

from lightning_geo.measurement.narrowing import Narrowing
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.selection import compares_samples, select
from lightning_geo.observe import Tap

DEPTH = 24
METRICS = tuple(name for name in select() if not compares_samples(name))


class Samples:
    """Default samples of a BERT of width 384 on the same inputs, as the probe takes them."""

    def __init__(self, depth: int, layers: Any, inputs: torch.Tensor, *, narrow: bool = True) -> None:
        size: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
        config = BertConfig(vocab_size=60, num_hidden_layers=depth, **size)
        self._model = BertModel(config, add_pooling_layer=False).eval()
        self._inputs, self._layers, self._tap = inputs, layers, Tap(self._model)
        self._known: dict[str, Any] = {}
        self._narrowings = {"": Narrowing(self._tap)} if narrow else None

    def forward(self) -> None:
        """Run the model."""
        with torch.no_grad():
            self._model(input_ids=self._inputs)

    def take(self) -> None:
        """Take a sample."""
        options: dict[str, Any] = {"known": self._known, "narrowings": self._narrowings}
        measurement = Measurement({"": self._tap}, METRICS, self._layers, **options)
        with measurement.observe():
            self.forward()
        measurement.compute()

    def added(self) -> float:
        """Seconds that a sample takes more than the forward."""
        return seconds(self.take) - seconds(self.forward)


def seconds(function: Callable[[], object]) -> float:
    """Elapsed seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    inputs = torch.randint(1, 60, (args.batch, args.tokens))
    last = [DEPTH - 1]
    rows = {
        "one layer": Samples(1, None, inputs),
        f"layers={last}, probe": Samples(DEPTH, last, inputs),
        f"layers={last}, observed whole": Samples(DEPTH, last, inputs, narrow=False),
        "all layers": Samples(DEPTH, None, inputs),
    }
    for samples in rows.values():
        for _ in range(3):  # two samples show what the third relies on
            samples.take()
    rounds = [[samples.added() for samples in rows.values()] for _ in range(args.repeats)]
    print(f"{args.batch} x {args.tokens} tokens, added to the forward:")
    for number, name in enumerate(rows):
        added = statistics.median(row[number] for row in rounds)
        ratio = added / statistics.median(row[0] for row in rounds)
        print(f"{name:28} {added * 1e3:7.1f} ms {ratio:7.2f}")


if __name__ == "__main__":
    main()
