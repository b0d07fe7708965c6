"""What the families cost that have to be named, beside a default sample of BERT-base.

Training waits until a sample's last operation and its copy to the host are launched. The host decomposes
matrices once the copy is there, beside training.
"""

from __future__ import annotations

import functools
import statistics
import time
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

    def sample(metrics: tuple[str, ...]) -> tuple[float, float]:
        """Milliseconds until all is launched, and until all is there."""
        bench.wait()
        started = time.perf_counter()
        measurement = Measurement({"": tap}, tuple(m for m in metrics if not compares_samples(m)))
        measurement.score("", 2)
        with torch.no_grad(), measurement.observe():
            model(input_ids=ids)
        assert not measurement.failures, measurement.failures
        derivation = measurement.derive()
        launched = time.perf_counter()
        derivation.finish()
        return 1e3 * (launched - started), 1e3 * (time.perf_counter() - started)

    cases = {name: functools.partial(sample, metrics) for name, metrics in names.items()}
    for case in cases.values():
        case()
    return lambda: _run(bench, cases)


def _run(bench: Bench, cases: dict[str, Any]) -> None:
    def rows() -> Any:
        for name, case in cases.items():
            times = [case() for _ in range(1 if bench.tiny else 5)]
            yield name, *map(statistics.median, zip(*times, strict=True))

    header = "family | until launched, ms | until all is there, ms"
    table("A sample of BERT-base by family, float32, 16 × 128 tokens", header, rows())
