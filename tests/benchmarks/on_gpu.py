"""Everything that needs a GPU, in one command: ``python tests/benchmarks/on_gpu.py``.

Runs the tests of ``tests/gpu``, then measures and prints tables: the statistics of an attention call against
the FlashAttention forward that they watch, against what eager attention with entropies costs, how cost and
memory grow, statistics of vectors as a share of the device's copy bandwidth, and a whole training step.

``--tiny`` runs every line of it with small sizes, on a CPU in Triton's interpreter (``TRITON_INTERPRET=1``):
its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_geo import kernels
from lightning_geo.functional import attention_statistics
from lightning_geo.kernels import MOMENTS, STATISTICS, STREAM

ROWS = frozenset(STATISTICS) - {"received"}
SHAPES = {  # name: batch, heads, tokens, head_dim, causal, the floor in µs by KERNELS.md
    "BERT-base": (32, 12, 512, 64, False, 26),
    "Llama-like": (1, 32, 8192, 128, True, 348),
    "ViT-L": (64, 16, 197, 64, False, 16),
}
TINY = {name: (1, 2, 40, shape[3], shape[4], shape[5]) for name, shape in SHAPES.items()}


class Bench:
    """Times functions side by side, so that what slows one slows all."""

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def times(self, *functions: Callable[[], object]) -> list[list[float]]:
        """Milliseconds of each function, in rounds."""
        for _ in range(3 if self.device == "cuda" else 1):
            for function in functions:
                function()
        rounds = [[self._once(function) for function in functions] for _ in range(self.repeats)]
        return [list(column) for column in zip(*rounds, strict=True)]

    def _once(self, function: Callable[[], object]) -> float:
        if self.device != "cuda":
            start = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - start)
        # cold caches, as in a training step; and the device waits, so that launches are not what is timed
        self._flush().zero_()
        torch.cuda._sleep(1_000_000)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)

    def _flush(self) -> Tensor:
        if not hasattr(self, "_buffer"):
            self._buffer = torch.empty(256 << 20, dtype=torch.uint8, device=self.device)
        return self._buffer

    def memory(self, function: Callable[[], object]) -> float:
        """MiB that a function needs at its peak, results included."""
        if self.device != "cuda":
            function()
            return float("nan")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def ratio(times: list[float], others: list[float]) -> float:
    """Median of paired ratios."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def table(title: str, header: str, rows: Iterable[Iterable[object]]) -> None:
    """Print Markdown, row by row."""
    names = header.split(" | ")
    print(f"\n### {title}\n\n| {header} |\n|{' --- |' * len(names)}", flush=True)
    for row in rows:
        cells = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row)
        print(f"| {' | '.join(cells)} |", flush=True)


def pair(bench: Bench, batch: int, heads: int, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Query and key in bf16, as projections leave them: ``[B, N, H, D]`` transposed."""
    query, key = torch.randn(2, batch, tokens, heads, width, device=bench.device).to(torch.bfloat16)
    return query.transpose(1, 2), key.transpose(1, 2)


def measured(query: Tensor, key: Tensor, causal: bool, wanted: Iterable[str] | None) -> Callable[[], object]:
    """The statistics by the Triton kernels."""
    _, reason = kernels._function("attention", "triton", _problem(query, key))
    assert reason is None, f"the Triton kernels cannot take it: {reason}"
    return lambda: attention_statistics(query, key, is_causal=causal, statistics=wanted, backend="triton")


def _problem(query: Tensor, key: Tensor) -> kernels.AttentionProblem:
    return kernels.AttentionProblem(query, key, 1.0)


def forward(bench: Bench, query: Tensor, key: Tensor, causal: bool) -> Callable[[], object]:
    """FlashAttention's forward through SDPA."""

    def run() -> None:
        flash = (
            sdpa_kernel(SDPBackend.FLASH_ATTENTION) if bench.device == "cuda" else contextlib.nullcontext()
        )
        with flash, torch.no_grad():
            F.scaled_dot_product_attention(query, key, key, is_causal=causal)

    return run


def eager(query: Tensor, key: Tensor) -> Callable[[], object]:
    """What users do today: ``output_attentions=True`` and an entropy."""

    def run() -> Tensor:
        with torch.no_grad():
            p = torch.softmax(
                query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, -1, dtype=torch.float32
            )
            (p.to(query.dtype) @ key).sum()
            return torch.special.entr(p).sum(-1)

    return run


def against_flash(bench: Bench, shapes: dict[str, Any]) -> None:
    def rows() -> Iterable[Iterable[object]]:
        for name, (batch, heads, tokens, width, causal, floor) in shapes.items():
            query, key = pair(bench, batch, heads, tokens, width)
            flash, some, full, everything = bench.times(
                forward(bench, query, key, causal),
                measured(query, key, causal, ("logsumexp", "entropy")),
                measured(query, key, causal, ROWS),
                measured(query, key, causal, None),
            )
            micro = [1e3 * statistics.median(times) for times in (flash, some, full, everything)]
            yield (
                name, *(round(m) for m in micro), ratio(some, flash), ratio(full, flash),
                ratio(everything, flash), ratio(everything, flash) - ratio(full, flash),
                f"{floor} ({floor / micro[2]:.0%})",
            )  # fmt: skip

    table(
        "Statistics of one attention call against its FlashAttention forward, bf16",
        "shape | SDPA µs | lse + entropy µs | all but received µs | all µs | lse + entropy / SDPA | "
        "all but received / SDPA | all / SDPA | received extra | floor µs (reached)",
        rows(),
    )


def against_eager(bench: Bench, lengths: Iterable[int]) -> None:
    def rows() -> Iterable[Iterable[object]]:
        for tokens in lengths:
            query, key = pair(bench, 2, 12, tokens, 64)
            ours = measured(query, key, False, None)
            dense = eager(query, key)
            slow, fast = bench.times(dense, ours)
            memory = (f"{bench.memory(f):.0f}" for f in (dense, ours))
            yield tokens, statistics.median(slow), statistics.median(fast), ratio(slow, fast), *memory

    table(
        "Against eager attention with entropies, B 2, H 12, D 64, bf16",
        "N | eager ms | all statistics ms | times faster | eager MiB | ours MiB",
        rows(),
    )


def growth(bench: Bench, lengths: Iterable[int]) -> None:
    def rows() -> Iterable[Iterable[object]]:
        for tokens in lengths:
            query, key = pair(bench, 1, 8, tokens, 64)
            ours = measured(query, key, True, None)
            flash, all_of_them = bench.times(forward(bench, query, key, True), ours)
            yield (
                tokens, statistics.median(flash), statistics.median(all_of_them), ratio(all_of_them, flash),
                f"{bench.memory(ours):.1f}", f"{8 * tokens * 4 * (len(STATISTICS) + 2) / 2**20:.1f}",
            )  # fmt: skip

    table(
        "How cost grows with length: causal, B 1, H 8, D 64, bf16",
        "N | SDPA ms | all statistics ms | ratio | MiB | MiB of its planes",
        rows(),
    )


def of_vectors(bench: Bench, batch: int, tokens: int) -> None:
    def rows() -> Iterable[Iterable[object]]:
        for width in (768, 4096):
            x = torch.randn(batch, tokens, width, device=bench.device).to(torch.bfloat16)
            before, out = torch.randn_like(x), torch.empty_like(x)
            for name, start in (("stream", None), ("stream with input", before)):

                def run(x: Tensor = x, start: Tensor | None = start) -> object:
                    return kernels.stream_statistics(x, None, start, frozenset(STREAM), "triton")

                yield line(f"{name}, d {width}", run, x, out, 1 if start is None else 2)
        for width in (64, 128):
            x = torch.randn(batch, tokens, 12, width, device=bench.device).to(torch.bfloat16).transpose(1, 2)
            out = torch.empty_like(x)
            for wanted in (MOMENTS, ("norm", "directions")):

                def run(x: Tensor = x, wanted: Iterable[str] = wanted) -> object:
                    return kernels.head_moments(x, None, frozenset(wanted), "triton")

                yield line(f"heads' {', '.join(wanted)}, D {width}", run, x, out, 1)
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.randn(batch, 1, tokens, 768, device=bench.device).to(dtype)

            def run(x: Tensor = x) -> object:
                return kernels.head_moments(x, None, frozenset({"scatter"}), "triton")

            yield line(f"scatter of all heads, d 768, {dtype}", run, x, torch.empty_like(x), 1)

    def line(name: str, run: Callable[[], object], x: Tensor, out: Tensor, reads: int) -> Iterable[object]:
        copy, ours = bench.times(lambda: out.copy_(x), run)
        # a copy moves its bytes twice, a read once
        share = statistics.median(c * reads / 2 / o for c, o in zip(copy, ours, strict=True))
        return name, 1e3 * statistics.median(ours), 1e3 * statistics.median(copy), f"{share:.0%}"

    table(
        f"Statistics of vectors, {batch} x {tokens} tokens, bf16",
        "what | µs | device copy of the vectors µs | share of the copy's bandwidth",
        rows(),
    )


def whole_step(bench: Bench, batch: int, tokens: int, steps: int, **sizes: int) -> None:
    import tempfile

    import pytorch_lightning as pl
    from pytorch_lightning.loggers import TensorBoardLogger
    from torch.utils.data import DataLoader
    from transformers import BertConfig, BertForSequenceClassification

    from lightning_geo import GeometryMonitor, load_history

    class Classifier(pl.LightningModule):
        """BERT-base from scratch."""

        def __init__(self) -> None:
            super().__init__()
            self.model = BertForSequenceClassification(BertConfig(**sizes))

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            return self.model(**batch).loss  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-5)

    class Clock(pl.Callback):
        """Seconds of steps, samples included, and of a bare forward."""

        def __init__(self) -> None:
            self.ends: list[float] = []
            self.bare: list[float] = []

        def _now(self) -> float:
            if bench.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            self.ends.append(self._now())
            module.model.eval()
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                module.model(**batch)
            module.model.train()
            self.bare.append(self._now() - self.ends[-1])

        def steps(self) -> list[float]:
            starts = [end + bare for end, bare in zip(self.ends, self.bare, strict=True)]
            return [end - start for start, end in zip(starts, self.ends[1:], strict=False)]

    data = [
        {"input_ids": torch.randint(1000, 20_000, (tokens,)), "labels": torch.tensor(i % 2),
         "attention_mask": (torch.arange(tokens) < tokens - i % 20).long()}
        for i in range(batch * steps)
    ]  # fmt: skip

    def rows() -> Iterable[Iterable[object]]:
        for source in ("batch", "probe"):
            clock = Clock()
            monitor = GeometryMonitor(schedule=lambda step: step % 2 == 0, source=source)
            with tempfile.TemporaryDirectory() as directory:
                trainer = pl.Trainer(
                    accelerator="gpu" if bench.device == "cuda" else "cpu", devices=1,
                    precision="bf16-mixed", max_steps=steps, callbacks=[monitor, clock],
                    logger=TensorBoardLogger(directory), enable_checkpointing=False,
                    enable_progress_bar=False, enable_model_summary=False,
                )  # fmt: skip
                trainer.fit(Classifier(), DataLoader(data, batch))  # type: ignore[arg-type]
                costs = load_history(trainer.log_dir).metadata["cost_seconds"]
            times = clock.steps()  # of steps 1, 2, ...: the even ones are sampled
            skip = 2 if len(times) > 6 else 0  # kernels are compiled in the first
            pairs = list(zip(times[0::2], times[1::2], strict=False))[skip:]
            yield (
                source,
                1e3 * statistics.median(plain for plain, _ in pairs),
                1e3 * statistics.median(sampled for _, sampled in pairs),
                statistics.median(sampled / plain for plain, sampled in pairs),
                1e3 * statistics.median(costs[1 + skip :]),
                1e3 * statistics.median(clock.bare),
            )

    table(
        f"Whole step: BERT-base, batch {batch} x {tokens}, bf16, every layer, default metrics",
        "source | step ms | sampled step ms | sampled / unsampled | sample ms | bare forward of the batch ms",
        rows(),
    )


def main() -> None:
    """Run the tests, then every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes on a CPU, to see that it runs")
    parser.add_argument("--skip-tests", action="store_true")
    args = parser.parse_args()
    tests = Path(__file__).parents[1]
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device; --tiny runs it on a CPU")
    if not args.skip_tests:
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(tests / "gpu")],
            check=False, cwd=tests.parent,
        )  # fmt: skip
    bench = Bench("cpu" if args.tiny else "cuda", 2 if args.tiny else 30)
    torch.manual_seed(0)
    name = "a CPU" if args.tiny else torch.cuda.get_device_name()
    print(f"\n{name}, torch {torch.__version__}, medians of {bench.repeats} paired rounds")
    against_flash(bench, TINY if args.tiny else SHAPES)
    against_eager(bench, [40] if args.tiny else [512, 1024, 2048, 4096])
    growth(bench, [24, 40] if args.tiny else [2**n for n in range(7, 18)])
    of_vectors(bench, *((1, 40) if args.tiny else (32, 2048)))
    if args.tiny:
        small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
        whole_step(bench, 2, 16, 4, num_hidden_layers=1, **small)
    else:
        whole_step(bench, 32, 512, 25)


if __name__ == "__main__":
    main()
