"""Attention patterns in the record: those of the probe's first sequence, at the samples with pictures."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from lightning_geo import GeometryMonitor, load_history
from lightning_geo.monitor.token_names import with_words
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.warn_once import WarnOnce
from support.lit import Causal, Classifier, Lit, fit, loader, sequences, trainer
from support.packed_models import BUILDS, documents, flattened

STACK = "bert.encoder.layer"


def trained(
    directory: Path, module: pl.LightningModule, steps: int = 6, data: Any = None, **options: Any
) -> GeometryHistory:
    """Train with a monitor, and read the record of the run."""
    monitor = GeometryMonitor(**{"every_n_steps": 1, "strict": True, "metrics": ["entropy"], **options})
    fit(directory, module, monitor, steps=steps, data=data)
    return load_history(next((directory / "lightning_geo").iterdir()))


def attended(module: Lit, item: dict[str, Tensor], side: int) -> Tensor:
    """What transformers' eager attention does with one sequence: [layer, head, side, side]."""
    module.model.eval()
    module.model.set_attn_implementation("eager")
    with torch.no_grad():
        inputs = {name: value[None] for name, value in item.items() if name != "labels"}
        output = module.model(**inputs, output_attentions=True)
    return torch.stack([layer[0, :, :side, :side] for layer in output.attentions]).float()


@pytest.mark.parametrize("make", [Classifier, Causal])
def test_the_last_patterns_are_those_of_the_trained_model(tmp_path: Path, make: type[Lit]) -> None:
    module = make()
    history = trained(tmp_path, module)
    (patterns,) = history.record(-1).patterns.values()
    first = sequences()[0]
    real = int(first["attention_mask"].sum())
    expected = attended(module, first, real)
    assert patterns.lengths.tolist() == [real] * 2
    assert patterns.tokens == tuple(f"#{token}" for token in first["input_ids"][:real].tolist())
    for layer in range(2):
        for head in range(4):
            read, true = patterns.values(layer, head), expected[layer, head].numpy()
            assert read.shape == (real, real)
            assert (np.abs(read - true) <= np.sqrt(true) / 254 + 5e-6).all()  # the error that is stated


def test_padding_on_either_side_is_left_out(tmp_path: Path) -> None:
    items = sequences(8)[3:]  # the first one has three tokens of padding
    left = [{k: v.flip(0) if v.dim() else v for k, v in item.items()} for item in items]
    for name, data in (("right", items), ("left", left)):
        history = trained(tmp_path / name, Classifier(), data=torch.utils.data.DataLoader(data, 2))
        patterns = history.patterns()[0]
        real = items[0]["input_ids"][:7].tolist()
        assert patterns.tokens == tuple(f"#{t}" for t in (real if name == "right" else real[::-1]))
        assert patterns.codes.shape == (2, 4, 7, 7)
        rows = patterns.values(layer=1, head=2).sum(1)
        assert np.abs(rows - 1).max() < 0.02


@pytest.mark.slow
def test_patterns_come_with_pictures_whatever_the_loggers(tmp_path: Path) -> None:
    steps = 40
    for name, logger in (("none", False), ("csv", CSVLogger), ("tensorboard", TensorBoardLogger)):
        made = logger and logger(tmp_path / name)
        monitor = GeometryMonitor(every_n_steps=1, strict=True, metrics=["entropy"])
        runner = trainer(tmp_path / name, monitor, steps=steps, logger=made)
        runner.fit(Classifier(), loader(64))
        where = made.log_dir if made else next((tmp_path / name / "lightning_geo").iterdir())
        kept = [*load_history(where).patterns()]
        assert (kept[0], kept[-1], len(kept)) == (0, steps, 10), name
        assert len(load_history(where)) == steps + 1


def test_they_change_nothing_of_the_training_and_can_be_left_out(tmp_path: Path) -> None:
    losses = []
    for patterns in (True, False):
        module = Classifier()
        history = trained(tmp_path / str(patterns), module, patterns=patterns)
        losses.append([*module.losses, *module.state_dict().values()])
        assert bool(history.record(0).patterns) is patterns
    module = Classifier()
    fit(tmp_path / "alone", module, steps=6)
    losses.append([*module.losses, *module.state_dict().values()])
    for ours, theirs in ((0, 1), (0, 2)):
        assert all(torch.equal(a, b) for a, b in zip(losses[ours], losses[theirs], strict=True))
    with pytest.raises(KeyError, match="No attention patterns"):
        trained(tmp_path / "batch", Classifier(), source="batch").patterns()


class Words:
    """A tokenizer, as far as it is asked."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        return [None if token == 1 else f"word{token}" for token in ids]


def test_a_trainers_tokenizer_is_not_looked_at_where_it_has_a_processing_class() -> None:
    """The Trainer of transformers 4 warns of each look."""

    class Trainer:
        processing_class = None

        @property
        def tokenizer(self) -> Any:
            raise AssertionError("Trainer.tokenizer is now deprecated")

    assert with_words({}, [Trainer()], True, WarnOnce(strict=True)) == {}


@pytest.mark.parametrize("name", ["tokenizer", "processing_class"])
def test_a_tokenizer_of_the_module_gives_words(tmp_path: Path, name: str) -> None:
    module = Classifier()
    setattr(module, name, Words())
    patterns = trained(tmp_path, module).patterns()[0]
    ids = sequences()[0]["input_ids"].tolist()
    assert patterns.tokens == ("#1", *(f"word{token}" for token in ids[1:]))


def test_who_keeps_inputs_out_of_checkpoints_is_told(tmp_path: Path) -> None:
    def said(directory: str, **options: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trained(tmp_path / directory, Classifier(), **options)
        return [str(w.message) for w in caught if "enter the record" in str(w.message)]

    (warning,) = said("told", probe_in_checkpoint=False)
    assert "tokens of the probe enter the record" in warning
    assert "`patterns=False`" in warning
    assert not said("default")
    assert not said("off", probe_in_checkpoint=False, patterns=False)


class Seq2Seq(Lit):
    """A small T5, whose decoder is given other tokens than its encoder."""

    def __init__(self) -> None:
        sizes = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        super().__init__(lambda: T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        ids = batch["input_ids"]
        return self.model(
            input_ids=ids, attention_mask=batch["attention_mask"], decoder_input_ids=ids.flip(1)[:, :6],
            labels=ids[:, :6].contiguous(),
        ).loss  # fmt: skip


def test_each_stack_has_its_own_tokens_and_cross_attention_has_no_pattern(tmp_path: Path) -> None:
    history = trained(tmp_path, Seq2Seq())
    patterns = history.record(0).patterns
    ids = sequences()[0]["input_ids"].tolist()
    assert sorted(patterns) == ["decoder", "encoder"]
    encoder, decoder = patterns["encoder"], patterns["decoder"]
    assert encoder.tokens == tuple(f"#{token}" for token in ids)
    assert decoder.tokens == tuple(f"#{token}" for token in ids[::-1][:6])
    shown = decoder.values(layer=0, head=0)
    assert (np.triu(shown, 1) == 0).all()  # causal
    with pytest.raises(KeyError, match="Several stacks"):
        history.patterns()


class Windows(nn.Module):
    """Attention without ids, over more tokens than cells."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, x, x, need_weights=False)[0]
        return x


class Images(Lit):
    def __init__(self) -> None:
        super().__init__(Windows)

    def loss(self, batch: Tensor) -> Tensor:  # type: ignore[override]
        return self.model(batch).square().mean()


def test_without_ids_there_are_patterns_without_tokens(tmp_path: Path) -> None:
    data = torch.utils.data.DataLoader(torch.randn(16, 50, 16), 4)
    module = Images()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patterns = trained(tmp_path, module, data=data, probe_in_checkpoint=False).patterns()[0]
    assert not [w for w in caught if "enter the record" in str(w.message)]
    assert (patterns.tokens, patterns.lengths.tolist()) == ((), [50, 50])
    assert patterns.codes.shape == (2, 2, 32, 32)
    # cells of one token and of two: the mean over queries, the sum over keys
    assert np.abs(patterns.values(layer=0, head=0).sum(1) - 1).max() < 0.03


def test_layers_that_nobody_asked_for_have_none(tmp_path: Path) -> None:
    history = trained(tmp_path, Classifier(layers=3), layers=[1], steps=12)
    for patterns in history.patterns().values():
        assert patterns.lengths.tolist() == [0, 10, 0]
        assert np.isnan(patterns.values(0, 0)).all()


class Packed(Lit):
    """A Llama that is given several documents in each row."""

    def __init__(self) -> None:
        super().__init__(lambda: BUILDS["llama"]())

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch, labels=batch["input_ids"]).loss  # type: ignore[no-any-return]


def test_of_packed_rows_it_is_the_first_document(tmp_path: Path) -> None:
    rows = [dict(flattened(documents(seed=seed))) for seed in range(4)]
    keep = ("input_ids", "position_ids")
    data = torch.utils.data.DataLoader([{k: row[k][0] for k in keep} for row in rows], 1)
    patterns = trained(tmp_path, Packed(), data=data).patterns()[0]
    first = documents()[0]
    assert patterns.lengths.tolist() == [len(first)] * 2
    assert patterns.tokens == tuple(f"#{token}" for token in first.tolist())
    assert (np.triu(patterns.values(layer=1, head=3), 1) == 0).all()
