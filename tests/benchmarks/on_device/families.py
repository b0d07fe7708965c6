"""What the families cost that have to be named, beside a default sample of BERT-base."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.selection import compares_samples, select
from lightning_geo.observe import Tap
from on_device.bench import Bench, table

__all__ = ["prepare"]

FAMILIES = ("weights", "projection", "gates", "score_spectra")


def prepare(bench: Bench) -> object:
    """Build the model, and take a sample of each family, which compiles the kernels."""
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    model = BertModel(BertConfig(**small if bench.tiny else {}), add_pooling_layer=False).eval()
    model = model.to(bench.device)
    tap = Tap(model, (1, 2))
    ids = torch.randint(5, 1000, (2, 24) if bench.tiny else (16, 128), device=bench.device)
    names = {"default": select(), **{name: select(name) for name in FAMILIES}}

    def sample(metrics: tuple[str, ...]) -> None:
        measurement = Measurement({"": tap}, tuple(m for m in metrics if not compares_samples(m)))
        measurement.score("", 2)
        with torch.no_grad(), measurement.observe():
            model(input_ids=ids)
        assert not measurement.failures, measurement.failures
        measurement.compute()

    cases = {name: functools.partial(sample, metrics) for name, metrics in names.items()}
    for case in cases.values():
        case()
    return lambda: _run(bench, cases)


def _run(bench: Bench, cases: dict[str, Any]) -> None:
    def rows() -> Any:
        for name, case in cases.items():
            (times,) = bench.wall(case, repeats=1 if bench.tiny else 5)
            yield name, statistics.median(times)

    table("A sample of BERT-base by family, float32, 16 × 128 tokens", "family | ms", rows())
