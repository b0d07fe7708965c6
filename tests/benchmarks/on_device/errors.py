"""Errors against the float64 oracle of the same rounded inputs: a fast wrong number is worth nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from kernels.calls import problem_of
from kernels.tolerances import DEFAULT_TOLERANCE, TOLERANCES
from lightning_geo import kernels
from lightning_geo.kernels.reference import reference
from on_device.bench import Bench, table
from on_device.calls import Shape, padded, real_tokens, tensors

__all__ = ["prepare"]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# name: shape, dtype, padding, options
CONFIGURATIONS: dict[str, tuple[Shape, torch.dtype, str, dict[str, Any]]] = {
    "BERT": (Shape(2, 12, 12, 512, 64, False), BF16, "none", {}),
    "BERT, key row, special tokens": (Shape(2, 12, 12, 512, 64, False), BF16, "key row", {"special": True}),
    "BERT, matrix": (Shape(2, 12, 12, 512, 64, False), BF16, "matrix", {}),
    "Llama": (Shape(2, 32, 8, 700, 128, True), BF16, "none", {}),
    "Llama, matrix": (Shape(2, 32, 8, 700, 128, True), BF16, "matrix", {}),
    "ViT-H, fp16": (Shape(4, 16, 16, 257, 80, False), FP16, "none", {}),
    "Gemma": (Shape(1, 8, 4, 900, 256, True), BF16, "none", {"window": 400, "softcap": 50.0}),
    "fp32, D 64": (Shape(2, 12, 12, 300, 64, False), FP32, "key row", {}),
    "fp32, D 128": (Shape(1, 8, 2, 515, 128, True), FP32, "none", {}),
    "fp32, D 256": (Shape(1, 4, 4, 300, 256, True), FP32, "none", {}),
    "sampled rows": (Shape(2, 8, 8, 1024, 64, True), BF16, "none", {"rows": 128}),
}


def prepare(bench: Bench) -> object:
    """Compile what the configurations need."""
    problems = {}
    for name, configuration in CONFIGURATIONS.items():
        problems[name] = _problem(bench, *configuration)
        kernels.attention(problems[name], "triton")
    return lambda: _run(problems)


def _problem(
    bench: Bench, shape: Shape, dtype: torch.dtype, padding: str, options: dict[str, Any]
) -> kernels.AttentionProblem:
    if bench.tiny:
        shape = shape._replace(batch=1, heads=2, key_heads=1, tokens=33)
        options = {name: 9 if name in ("rows", "window") else value for name, value in options.items()}
    query, key = tensors(bench, shape, dtype)
    options = padded(real_tokens(bench, shape), padding, shape.causal) | options
    if "special" in options:
        options["special"] = torch.zeros(shape.batch, shape.tokens, dtype=torch.bool, device=bench.device)
        options["special"][:, :: shape.tokens - 1] = True
    rows = options.pop("rows", None)
    call = problem_of({"query": query, "key": key, **options})
    if rows is not None:
        drawn = torch.rand(shape.batch, shape.tokens, device=bench.device).topk(rows).indices.sort().values
        call = dataclasses.replace(call, rows=drawn)
    return call


def _run(problems: dict[str, kernels.AttentionProblem]) -> None:
    def rows() -> Any:
        for name, problem in problems.items():
            got, expected = kernels.attention(problem, "triton"), reference(problem)
            shares, absolute, patterns = {}, {}, []
            for field in dataclasses.fields(got):
                value, exact = getattr(got, field.name), getattr(expected, field.name)
                if not isinstance(value, Tensor) or value.dtype == torch.bool:
                    continue
                if not torch.equal(value.isnan(), exact.isnan()):
                    patterns.append(field.name)
                tolerance = TOLERANCES.get(field.name, DEFAULT_TOLERANCE)
                error = (value.double() - exact).abs()
                shares[field.name] = (
                    (error / (tolerance.absolute + tolerance.relative * exact.abs()))
                    .nan_to_num()
                    .max()
                    .item()
                )
                absolute[field.name] = error.nan_to_num().max().item()
            worst = max(shares, key=lambda field: shares[field])
            live = torch.equal(got.live, expected.live)
            yield (
                name,
                "yes" if live and not patterns else f"NO: {', '.join(patterns) or 'live'}",
                worst,
                shares[worst],
                *(absolute.get(field, float("nan")) for field in ("logsumexp", "entropy", "received")),
            )

    table(
        "Errors against float64",
        "call | same rows live | worst statistic | error over its tolerance | logsumexp | entropy | received",
        rows(),
    )
