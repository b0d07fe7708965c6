"""Name what every head does, and show the attention of a typical head beside each name.

Two models: a 6-layer BERT as it comes with a Python package, and a small GPT trained here on BBC News for a
minute or two. Writes one picture for each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel

from lightning_geo import GeometryRecord, measure
from lightning_geo.functional import gate_labels
from lightning_geo.metrics.gates import GATES, MIXED
from texts import bbc_news, first_tokens, packaged_bert, token_ids

NAMES = (*GATES, MIXED)
VOCABULARY = 4096


def train_gpt(ids: Tensor, steps: int, batch_size: int = 8) -> GPT2LMHeadModel:
    """A 4-layer decoder that has learned to continue the texts a little."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=128, n_layer=4, n_head=4, n_positions=ids.shape[1],
        use_cache=False, bos_token_id=None, eos_token_id=None,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.set_attn_implementation("eager")  # the only one that shows its attention
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        batch = ids[torch.randint(len(ids), (batch_size,))]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.2f}")
    model.eval()
    return model


def show(model: nn.Module, ids: Tensor, special: list[int] | None, path: Path) -> None:
    """Print the gates of all heads and draw the clearest head of each."""
    record = measure(model, {"input_ids": ids}, metrics="gates", special_token_ids=special)
    margins = np.stack([record[f"gate.{gate}"] for gate in GATES])
    labels = gate_labels(torch.from_numpy(margins)).numpy()
    with torch.no_grad():
        attentions = model(input_ids=ids[:1], output_attentions=True).attentions
    print(f"\n{type(model).__name__}, {labels.size} heads")
    print_layers(record)
    shown = [place for place in range(len(NAMES)) if (labels == place).any()]
    figure = Figure(figsize=(2.1 * len(shown), 4.6), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False)
    for column, place in zip(axes.T, shown, strict=True):
        margin = margins.max(0) if NAMES[place] == MIXED else margins[place]
        clearest = np.where(labels == place, margin, np.nan)
        order = np.argsort(clearest, axis=None)[: (labels == place).sum()]
        # the clearest, and the one that is nearest to being something else
        for axis, flat in zip(column, (order[-1], order[0]), strict=True):
            layer, head = np.unravel_index(flat, labels.shape)
            p = attentions[layer][0, head].numpy()
            axis.imshow(np.sqrt(p), cmap="magma", vmin=0, vmax=1)
            axis.set_title(f"{NAMES[place]} {clearest[layer, head]:+.2f}\nlayer {layer}, head {head}", size=8)
            axis.set_xticks([])
            axis.set_yticks([])
    figure.savefig(path, dpi=110)
    print(f"{path}: above the clearest head of each gate, below the one nearest to being another")


def print_layers(record: GeometryRecord) -> None:
    """Heads per gate and layer, as a table."""
    print("layer  " + "  ".join(NAMES))
    counts = [record[f"gate_count.{name}"] for name in NAMES]
    for layer, row in enumerate(zip(*counts, strict=True)):
        cells = (f"{int(n):>{len(name)}}" for n, name in zip(row, NAMES, strict=True))
        print(f"{layer:>5}  " + "  ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="training steps of the GPT")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs"), help="where the pictures go")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    ids = first_tokens(bbc_news().documents[::200], args.length)[:8]
    bert = AutoModel.from_pretrained(packaged_bert(), local_files_only=True, attn_implementation="eager")
    show(bert, ids, [101, 102], args.output / "gates_bert.png")
    ids = token_ids(args.length, VOCABULARY)
    show(train_gpt(ids[8:], args.steps), ids[:8], None, args.output / "gates_gpt.png")


if __name__ == "__main__":
    main()
