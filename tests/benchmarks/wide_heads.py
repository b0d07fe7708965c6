"""The family ``head`` of a layer as wide as LLaMA 7B's: its time over the layer's own forward, and its bytes.

``python tests/benchmarks/wide_heads.py [--tokens 256]``
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from lightning_geo.kernels.workspace import reuse_scratch
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.metrics.selection import select
from lightning_geo.observe import AttentionCall, CallKey

HEADS, SIZE, DEPTH = 32, 128, 32


def seconds(function: Callable[[], object]) -> float:
    """Elapsed seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def held(sample: SampleStatistics) -> int:
    """Bytes of all sums."""
    tensors = [value for layer in sample.everything() for value in layer.sums.values()]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def measured(outputs: Tensor, layers: int) -> SampleStatistics:
    """The sums of so many layers with these outputs of their heads."""
    sample = SampleStatistics(select(["head"]))
    call = AttentionCall(outputs, outputs, outputs, outputs)
    with torch.no_grad(), reuse_scratch():
        for index in range(layers):
            sample.attention(CallKey(f"layers.{index}"), call)
        sample.settle()
    return sample


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    width = HEADS * SIZE
    config = LlamaConfig(hidden_size=width, intermediate_size=11008, num_attention_heads=HEADS)
    config._attn_implementation = "sdpa"
    layer = LlamaDecoderLayer(config, 0).eval()
    x = torch.randn(1, args.tokens, width)
    positions = LlamaRotaryEmbedding(config)(x, torch.arange(args.tokens)[None])
    outputs = torch.randn(1, args.tokens, HEADS, SIZE).transpose(1, 2)

    def forward() -> None:
        with torch.no_grad():
            layer(x, position_embeddings=positions)

    forward()
    measured(outputs, 1)
    pairs = [(seconds(lambda: measured(outputs, 1)), seconds(forward)) for _ in range(args.repeats)]
    ratio = statistics.median(ours / plain for ours, plain in pairs)
    print(f"{args.tokens} tokens: {ratio:.2f} of the layer's forward ({pairs[-1][1]:.2f} s)")
    print(f"{DEPTH} layers hold {held(measured(outputs, DEPTH)) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
