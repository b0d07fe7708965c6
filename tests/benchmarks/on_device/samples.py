"""One sample of whole models: kernels, time of host and device, and where both go."""

from __future__ import annotations

import cProfile
import functools
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.selection import compares_samples, select
from lightning_geo.observe import Tap
from on_device.bench import Bench, ratio, table

__all__ = ["prepare"]

METRICS = tuple(name for name in select() if not compares_samples(name))


class Case(NamedTuple):
    """A model and what it is given."""

    name: str
    model: nn.Module
    batch: dict[str, Tensor]
    layers: int
    tap: Tap
    #: calls that earlier samples have reported: memory is taken for as many
    known: dict[str, Any]


def prepare(bench: Bench) -> object:
    """Build the models and take one sample each, which compiles the kernels."""
    cases = list(_cases(bench))
    for case in cases:
        _observed(case).compute()
    return lambda: _run(bench, cases)


def _cases(bench: Bench) -> Any:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

    def batch(sequences: int, tokens: int, lost: int) -> dict[str, Tensor]:
        if bench.tiny:
            sequences, tokens, lost = 2, 24, min(lost, 4)
        ends = tokens - torch.arange(sequences) * lost // max(sequences - 1, 1)
        real = torch.arange(tokens) < ends[:, None]
        ids = torch.randint(5, 1000, (sequences, tokens))
        given = {"input_ids": ids} | ({"attention_mask": real.long()} if lost else {})
        return {name: tensor.to(bench.device) for name, tensor in given.items()}

    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    bert = BertModel(BertConfig(**small if bench.tiny else {}), add_pooling_layer=False)
    bert = bert.eval().to(bench.device, torch.bfloat16 if not bench.tiny else torch.float32)
    layers = bert.config.num_hidden_layers
    tap = Tap(bert, (1, 2))
    yield Case("BERT-base 16 × 128", bert, batch(16, 128, 0), layers, tap, {})
    yield Case("BERT-base 16 × 128 padded", bert, batch(16, 128, 30), layers, tap, {})
    yield Case("BERT-base 32 × 512", bert, batch(32, 512, 0), layers, tap, {})
    yield Case("BERT-base 32 × 512 padded", bert, batch(32, 512, 100), layers, tap, {})
    sizes: dict[str, Any] = {
        "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "num_hidden_layers": 4,
    }  # fmt: skip
    sizes = small | {"num_key_value_heads": 1} if bench.tiny else sizes
    llama = LlamaModel(LlamaConfig(vocab_size=1024, use_cache=False, **sizes))
    llama = llama.eval().to(bench.device, torch.bfloat16 if not bench.tiny else torch.float32)
    tap = Tap(llama, (1, 2))
    layers = llama.config.num_hidden_layers
    yield Case("Llama, 4 layers of 8B, 4 × 2048", llama, batch(4, 2048, 0), layers, tap, {})
    yield Case("Llama, 4 layers of 8B, 4 × 2048 padded", llama, batch(4, 2048, 400), layers, tap, {})


def _observed(case: Case) -> Measurement:
    measurement = Measurement({"": case.tap}, METRICS, known=case.known, timed=False)
    with torch.no_grad(), measurement.observe():
        case.model(**case.batch)
    assert not measurement.failures, measurement.failures
    return measurement


def _sampled(case: Case) -> None:
    _observed(case).compute()


def _forward(case: Case) -> None:
    with torch.no_grad():
        case.model(**case.batch)


def _run(bench: Bench, cases: list[Case]) -> None:
    repeats = 2 if bench.tiny else 7

    def rows() -> Any:
        for case in cases:
            functions = (functools.partial(f, case) for f in (_forward, _observed, _sampled))
            forward, observing, sample = bench.wall(*functions, repeats=repeats)
            hosts = []
            for _ in range(repeats):
                bench.wait()
                start = time.perf_counter()
                _observed(case).derive()
                hosts.append(1e3 * (time.perf_counter() - start))
            memory = _memory(bench, functools.partial(_sampled, case)) - _memory(
                bench, functools.partial(_forward, case)
            )
            medians = map(statistics.median, (forward, observing, hosts, sample))
            yield case.name, *medians, ratio(sample, forward), memory

    table(
        "A sample, default metrics, every layer, bf16 weights, ms, and the memory that it takes more",
        "model | forward | observed forward | until launched | with metrics derived | sample / forward | MB",
        rows(),
    )
    for case in cases:
        if case.name.endswith("padded"):
            _profile(bench, case)
    _functions(bench, cases[1])


def _memory(bench: Bench, function: Callable[[], object]) -> float:
    """The most megabytes that a function holds on the device."""
    bench.wait()
    if bench.tiny:
        function()
        return 0.0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    bench.wait()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _functions(bench: Bench, case: Case) -> None:
    """Where the host spends its time, by function; the profiler makes all of them slower."""
    profiler = cProfile.Profile()
    for _ in range(5):
        bench.wait()
        profiler.enable()
        _observed(case)
        profiler.disable()
    bench.wait()
    found: Any = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for title, key in (("itself", 2), ("with what it calls", 3)):
        top = sorted(found.items(), key=lambda item: item[1][key], reverse=True)[:40]
        table(
            f"{case.name}: five observed forwards by function, sorted by its time {title}",
            "function | calls | ms itself | ms with what it calls",
            (
                ("/".join(file.split("/")[-2:]) + f":{line} {name}", entry[1], 1e3 * entry[2], 1e3 * entry[3])
                for (file, line, name), entry in top
            ),
        )


def _profile(bench: Bench, case: Case) -> None:
    activities = [ProfilerActivity.CPU] + ([] if bench.tiny else [ProfilerActivity.CUDA])
    for what, function in (("forward", _forward), ("sample", _sampled)):
        bench.wait()
        with profile(activities=activities) as measured:
            function(case)
            bench.wait()
        events = measured.key_averages()
        launched = [e for e in events if e.device_type != torch.autograd.DeviceType.CPU]
        if what == "forward":
            base = sum(e.count for e in launched), sum(e.self_device_time_total for e in launched)
            continue
        count, spent = sum(e.count for e in launched), sum(e.self_device_time_total for e in launched)
        print(
            f"\n{case.name}: {count} kernels, {base[0]} of them the forward's: "
            f"{(count - base[0]) / case.layers:.0f} more a layer; device {spent / 1e3:.2f} ms, "
            f"the forward's {base[1] / 1e3:.2f} ms"
        )
        for title, source, spent_by in (
            ("device", launched, lambda e: e.self_device_time_total),
            ("host", [e for e in events if e.device_type == torch.autograd.DeviceType.CPU],
             lambda e: e.self_cpu_time_total),
        ):  # fmt: skip
            top = sorted(source, key=spent_by, reverse=True)[:15]
            table(
                f"{case.name}: a sample's top 15 by {title} time",
                "what | times | ms",
                ((e.key[:90].replace("|", "/"), e.count, spent_by(e) / 1e3) for e in top),
            )
