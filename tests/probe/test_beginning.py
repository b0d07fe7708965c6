"""What is replayed begins at the data, as it enters the step, and is divided where sequences are."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_geo import GeometryMonitor, load_history, measure
from lightning_geo.observe.replay.undisturbed_run import Call
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.probe import Probe
from support.lit import fit

IDS = torch.randint(0, 20, (8, 6), generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def probabilities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return (q @ k.transpose(-1, -2) * 4**-0.5).softmax(-1), v

    def forward(self, x: Tensor) -> Tensor:
        p, v = self.probabilities(x)
        return x + (p @ v).transpose(1, 2).flatten(2)


class Parts(pl.LightningModule):
    """An embedding, dropout and a frozen encoder as children; only the embedding learns.

    Args:
        own: Whether its own forward joins them, or its step.
        norm: Whether the embeddings go through batch normalisation.
    """

    def __init__(self, own: bool = True, norm: bool = False, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.drop = nn.Embedding(20, 8), nn.Dropout(0.3)
        self.norm = nn.BatchNorm1d(6, momentum=0.5) if norm else nn.Identity()
        self.encoder = nn.Sequential(Layer(), Layer())
        self.own, self.automatic_optimization = own, not manual

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(self.drop(self.norm(self.embed(ids) * 2)))  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        x = self(batch[0]) if self.own else Parts.forward(self, batch[0])
        loss = (x - 1).square().mean()
        self.log("loss", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("validation", (self(batch[0]) if self.own else Parts.forward(self, batch[0])).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.embed.parameters(), 2.0)


class NeedsTrainer(Parts):
    """Its step cannot run without its trainer's data module."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        assert len(self.trainer.train_dataloader) == 4
        return super().training_step(batch, batch_idx)


def truth(model: Parts) -> np.ndarray:
    """Entropy [layer, head] as it would be in eval mode."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    with torch.no_grad():
        x, found = model.norm(model.embed(IDS) * 2), []
        for layer in model.encoder:
            p = layer.probabilities(x)[0].double()
            found.append(-(p * p.log()).sum(-1).mean((0, 2)))
            x = layer(x)
    for module, mode in modes:
        module.training = mode
    return torch.stack(found).numpy()


class Truths(pl.Callback):
    """The right value of every sample, taken where it belongs."""

    def __init__(self) -> None:
        self.by_step: dict[int, np.ndarray] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        if isinstance(module, Parts):
            self.by_step[trainer.global_step] = truth(module)

    on_train_end = on_train_batch_start


def data() -> Any:
    return DataLoader(TensorDataset(IDS.repeat(4, 1)), batch_size=8)


def run(path: Path, model: pl.LightningModule, **options: Any) -> tuple[dict[int, Any], Truths, list[str]]:
    truths, validation = Truths(), options.pop("validation", None)
    steps = options.pop("steps", 4)
    monitor = GeometryMonitor(1, metrics=["metric:entropy"], **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(path, model, truths, monitor, data=data(), validation=validation, steps=steps)
    history = load_history(path / "lightning_geo" / "version_0")
    records = {int(step): history.record(i) for i, step in enumerate(history.steps)}
    return records, truths, [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]


@pytest.mark.parametrize("own", [True, False], ids=["own forward", "step"])
@pytest.mark.parametrize("sanity", [True, False])
def test_a_probe_does_not_begin_behind_a_trained_layer(own: bool, sanity: bool, tmp_path: Path) -> None:
    records, truths, said = run(tmp_path, Parts(own), validation=data() if sanity else None)
    assert said == []
    assert list(records) == [0, 1, 2, 3, 4]
    for step, record in records.items():
        assert list(record.stacks) == ["encoder"]
        np.testing.assert_allclose(record["entropy"], truths.by_step[step], atol=1e-5)
    assert np.abs(truths.by_step[4] - truths.by_step[0]).max() > 0.01  # what the embedding learns shows
    batch, _, _ = run(tmp_path / "batch", Parts(own), source="batch")
    assert batch[0].model == records[0].model


def test_a_step_of_manual_optimization_is_replayed(tmp_path: Path) -> None:
    records, truths, said = run(tmp_path, Parts(own=False, manual=True))
    assert said == []
    for step in (0, 1, 2, 3):
        np.testing.assert_allclose(records[step]["entropy"], truths.by_step[step], atol=1e-5)


def test_buffers_are_those_that_entered_the_step(tmp_path: Path) -> None:
    records, truths, _ = run(tmp_path, Parts(norm=True))
    for step, record in records.items():
        np.testing.assert_allclose(record["entropy"], truths.by_step[step], atol=1e-5)


def test_where_nothing_begins_at_the_data_training_itself_is_observed(tmp_path: Path) -> None:
    records, _, said = run(tmp_path, NeedsTrainer(own=False))
    assert len(said) == 1
    assert 'nothing to replay that begins at the data: `source="batch"` is used: ' in said[0]
    assert "NeedsTrainer: TypeError" in said[0]
    assert list(records) == [1, 2, 3]
    batch, _, _ = run(tmp_path / "batch", Parts(own=False), source="batch")
    assert records[1].model["stacks"] == batch[1].model["stacks"]


def test_a_named_module_behind_a_trained_layer_is_replayed_from_the_data_on(tmp_path: Path) -> None:
    records, truths, said = run(tmp_path, Parts(), module="encoder")
    assert said == []
    for step, record in records.items():
        np.testing.assert_allclose(record["entropy"], truths.by_step[step], atol=1e-5)


# -- division


class SequenceFirst(pl.LightningModule):
    """Fed [tokens, sequences, features], torch's default, or [tokens, features]."""

    def __init__(self, masked: bool = False, batched: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        x = torch.randn(20, 3, 8)
        self.x = x if batched else x[:, 0]
        self.mask = (nn.Transformer.generate_square_subsequent_mask(20),) if masked else ()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(self.x, *self.mask).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.mark.parametrize(
    "options", [{}, {"masked": True}, {"batched": False}], ids=["plain", "masked", "no batch axis"]
)
def test_tokens_are_not_cut_for_sequences(options: dict[str, bool], tmp_path: Path) -> None:
    model = SequenceFirst(**options)
    expected = measure(model.net, (model.x, *model.mask), metrics=["metric:entropy"])["entropy"]
    records, _, said = run(tmp_path, model, steps=1)
    assert said == []
    np.testing.assert_allclose(records[0]["entropy"], expected, atol=1e-5)


def test_a_call_that_is_kept_whole_stays_whole_in_a_checkpoint() -> None:
    whole = ProbeCall.of("m", Call((torch.ones(4, 2),))).whole()
    assert not whole.divisible
    (back,) = Probe.from_state_dict(Probe([whole]).state_dict()).calls
    assert not back.divisible
    assert back.take(slice(1)).call.args[0].shape == (4, 2)


def test_a_part_of_a_call_keeps_no_more_memory_than_its_own() -> None:
    part = ProbeCall.of("m", Call((torch.ones(256, 3),))).take(slice(2))
    assert part.call.args[0].untyped_storage().nbytes() == 2 * 3 * 4


@pytest.mark.parametrize("world", [1, 2, 3])
def test_sequences_that_come_one_by_one_are_shared_among_ranks(world: int) -> None:
    probe = Probe([ProbeCall.of("m", Call((torch.full((1, 2), i),))) for i in range(6)])
    shares = [probe.share(rank, world) for rank in range(world)]
    assert [len(share.calls) for share in shares] == [6 // world] * world
    seen = [int(c.call.args[0][0, 0]) for share in shares for c in share.calls]
    assert sorted(seen) == list(range(6))
    # the first two sequences of the probe, however many ranks there are
    scored = [sum(call.scored or 0 for call in share.calls) for share in shares]
    assert scored == ([2] if world == 1 else [1, 1, 0][:world])


def test_a_checkpoint_knows_which_sequences_are_scored() -> None:
    """Two ranks recorded four sequences each: the probe's first two are the first of either."""
    whole = [ProbeCall.of("m", Call((torch.full((4, 2), rank),))) for rank in range(2)]
    marked = [[replace(call, scored=1)] for call in whole]
    probe = Probe([call for calls in marked for call in calls])
    back = Probe.from_state_dict(probe.state_dict())
    assert [call.scored for call in back.calls] == [1, 1]
    shares = [back.share(rank, 3).calls for rank in range(3)]
    scored = [int(x) for calls in shares for c in calls for x in c.call.args[0][: c.scored, 0]]
    assert sorted(scored) == [0, 1]
