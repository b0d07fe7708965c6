"""What the families cost that have to be named: ``weights`` by itself, the others beside a default sample.

``weights`` is timed on the parameters of random models. What the others add is the time of a sample with the
family over that of the default sample taken right after it, medians of such pairs. Where nothing else is said
seconds are those of the CPU.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attention_cost import process_memory
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from lightning_geo.functional import HeadWeights
from lightning_geo.kernels.workspace import reuse_scratch
from lightning_geo.measurement.call_statistics import observed_scores
from lightning_geo.measurement.importance import importances
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.registry import metric_function, reads_of
from lightning_geo.metrics.selection import compares_samples, select, spec_of
from lightning_geo.metrics.spec import ROLES
from lightning_geo.observe import AttentionCall, Tap
from lightning_geo.observe.replay.undisturbed_run import Call, undisturbed
from lightning_geo.probe.call import ProbeCall
from texts import packaged_bert

#: What compares heads with each other or with the start, or sums over them.
BETWEEN = ("layer_symmetry", "layer_directionality", "read_overlap", "write_overlap", "weight_drift")
EVERY = select("weights")
PER_HEAD = tuple(name for name in EVERY if spec_of(name).name not in BETWEEN)

#: What is added to a default sample.
ADDED = {
    "`projection` without its angles": ["projection_strength", "score_norm_share"],
    "`projection`": ["projection"],
    "`gates`": ["gates"],
    "`score_spectra`": ["score_spectra"],
    "`importance`": ["importance"],
}

#: The metrics of score pairs, each with what it shares its pass with.
SCORED = {
    "`score_norm_share`": select("score_norm_share"),
    "`gates`": tuple(name for name in select("gates") if "attended" in reads_of(name)),
    "`score_entropy`": select("score_entropy"),
}

Layer = dict[str, Tensor]


def seconds(function: Callable[..., object], *args: object) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    function(*args)
    return time.process_time() - start


def layers_of(depth: int, width: int, heads: int) -> list[Layer]:
    """The weights of a BERT by role, heads apart, as they lie in the model."""
    config = BertConfig(
        vocab_size=8, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width,
    )  # fmt: skip
    layers = []
    for block in BertModel(config, add_pooling_layer=False).encoder.layer:
        attention: Any = block.attention
        own, output = attention.self, attention.output.dense
        layer = {role: getattr(own, role).weight.unflatten(0, (heads, -1)) for role in ROLES[:3]}
        # the output projection takes heads up along its columns
        layer["output"] = output.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
        layers.append({role: weight.detach() for role, weight in layer.items()})
    return layers


def starts_of(layers: list[Layer]) -> list[Layer]:
    """Weights that training has left, head by head as a run keeps them."""
    return [
        {role: (w + 1e-3 * torch.randn_like(w)).contiguous() for role, w in own.items()} for own in layers
    ]


def weigh(layers: list[Layer], starts: list[Layer], names: tuple[str, ...]) -> None:
    """Compute metrics of all layers, as a sample does."""
    with torch.no_grad(), reuse_scratch():
        for layer, start in zip(layers, starts, strict=True):
            weights = HeadWeights(layer["query"], layer["key"], layer["value"], layer["output"], start=start)
            for name in names:
                metric_function(name)(weights, *part_of(name))


def part_of(name: str) -> tuple[str, ...]:
    """What a metric of several parts is to be told beside the weights or scores."""
    return (name.rpartition(".")[2],) if spec_of(name).parts else ()


def weights_table(repeats: int) -> None:
    """A BERT-base, then one layer of several widths and numbers of heads."""
    print(f"\n`weights` of models of random weights, {torch.get_num_threads()} threads: CPU seconds\n")
    print("| layers | width | heads | per head | all | all, elapsed | extra memory | a layer's parameters |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    shapes = [(1, 256, 4), (1, 512, 8), (1, 1024, 16), (1, 2048, 32), (1, 1024, 4), (1, 1024, 64)]
    for depth, width, heads in [(12, 768, 12), *shapes]:
        layers = layers_of(depth, width, heads)
        starts, cells = starts_of(layers), []
        for names in (PER_HEAD, EVERY):
            weigh(layers, starts, names)  # warm
            cells.append(statistics.median(seconds(weigh, layers, starts, names) for _ in range(repeats)))
        elapsed = time.perf_counter()
        for _ in range(repeats):
            weigh(layers, starts, EVERY)
        cells.append((time.perf_counter() - elapsed) / repeats)
        own = 12 * width**2 * 4 / 2**20  # attention and feed-forward, float32
        memory = extra_memory("weights", width, heads)
        took = " | ".join(f"{cell:.3f}" for cell in cells)
        print(f"| {depth} | {width} | {heads} | {took} | {memory:.1f} MiB | {own:.1f} MiB |", flush=True)


def sampler(
    model: BertForSequenceClassification,
    more: list[str],
    batch: dict[str, Tensor],
    *,
    patterns: bool = False,
) -> Callable[[], object]:
    """What takes one sample after another of the default metrics and more, as the monitor's probe does."""
    asked = [*select(None), *(select(more) if more else ())]
    # what compares samples is not in a single one
    names = tuple(name for name in asked if not compares_samples(name))
    tap = Tap(model, (101, 102))

    def sample() -> None:
        measurement = Measurement({"": tap}, names, patterns=patterns)
        with undisturbed(model), measurement.observe():
            model(**batch)
        if "importance" in names:
            measurement.add_importance(importances(model, [ProbeCall.of("", Call((), batch))]), model.device)
        measurement.compute()

    sample()  # finds the projections, which is done once in a run
    return sample


def added_table(repeats: int) -> None:
    """What each family adds to a default sample of the packaged BERT."""
    model = BertForSequenceClassification.from_pretrained(packaged_bert())
    batches = []
    for size, length in ((16, 128), (8, 256)):
        ids = torch.randint(1000, 20_000, (size, length))
        mask = (torch.arange(length) < length - torch.arange(size)[:, None]).long()
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": torch.arange(size) % 2})
    print(
        f"\nAdded to a default sample of the packaged BERT, {torch.get_num_threads()} threads, CPU seconds\n"
    )
    print("| family | 16 x 128 tokens | 8 x 256 tokens |\n| --- | --- | --- |")
    plain = [sampler(model, [], batch) for batch in batches]
    rows = [*((label, more, False) for label, more in ADDED.items()), ("attention patterns", [], True)]
    for label, more, patterns in rows:
        cells = []
        for batch, without in zip(batches, plain, strict=True):
            sample = sampler(model, more, batch, patterns=patterns)
            pairs = [seconds(sample) / seconds(without) for _ in range(repeats)]
            cells.append(f"{100 * (statistics.median(pairs) - 1):+.1f} %")
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def scores_of(call: AttentionCall, names: tuple[str, ...]) -> None:
    """Compute metrics of score pairs that share their pass."""
    scores = observed_scores(call, 2)
    for name in names:
        metric_function(name)(scores, *part_of(name))


def random_call(length: int) -> AttentionCall:
    """Two sequences, 12 heads of 64."""
    query, key = torch.randn(2, 2, 12, length, 64)
    return AttentionCall(query, key, key, query)


def lengths_table(repeats: int) -> None:
    """What the metrics of score pairs take in a layer of long sequences, beside its attention."""
    print("\nMetrics of score pairs, one layer with 12 heads of 64, two sequences, CPU seconds\n")
    print(f"| N | SDPA forward | {' | '.join(SCORED)} | extra memory |")
    print(f"{'| --- ' * (len(SCORED) + 3)}|")
    for length in (512, 2048, 8192):
        call = random_call(length)
        attention: Any = F.scaled_dot_product_attention
        ways = [
            functools.partial(attention, call.query, call.key, call.value),
            *(functools.partial(scores_of, call, names) for names in SCORED.values()),
        ]
        took = [[seconds(way) for way in ways] for _ in range(repeats)]
        cells = " | ".join(f"{statistics.median(column):.3f}" for column in zip(*took, strict=True))
        print(f"| {length} | {cells} | {extra_memory('scores', length):.0f} MiB |", flush=True)


def extra_memory(kind: str, *sizes: int) -> float:
    """MiB that one layer adds to a fresh process at most."""
    command = [sys.executable, __file__, kind, *map(str, sizes)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _extra_memory(kind: str, size: int, heads: int = 1) -> float:
    """Code and thread pools are no part of it: a small one goes before."""
    before = 0.0
    for given in (8 * heads, size):
        layers = layers_of(1, given, heads) if kind == "weights" else []
        starts, call = starts_of(layers), random_call(8 if layers else given)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making them
        before = process_memory("VmRSS")
        weigh(layers, starts, EVERY)
        for names in SCORED.values():
            scores_of(call, names)
    return process_memory("VmHWM") - before


def main(repeats: int = 15) -> None:
    """Print the tables."""
    weights_table(repeats)
    added_table(repeats)
    lengths_table(max(1, repeats // 5))


if __name__ == "__main__":
    print(_extra_memory(sys.argv[1], *map(int, sys.argv[2:])))
