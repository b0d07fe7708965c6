"""Samples on a CUDA device: nothing waits for it, and records are those of samples that are waited for."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from lightning_geo import GeometryMonitor, load_history
from lightning_geo.kernels.triton import missing
from lightning_geo.measurement import decomposition
from lightning_geo.measurement.assemble import SampleDerivation
from lightning_geo.measurement.collectors import role_moments
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.selection import compares_samples, select
from lightning_geo.monitor import pending_sample
from lightning_geo.observe import Tap
from lightning_geo.observe.replay.undisturbed_run import undisturbed

_reason = missing(torch.device("cuda")) if torch.cuda.is_available() else "no CUDA device"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_reason is not None, reason=str(_reason))]


@pytest.mark.parametrize(
    ("families", "max_queries"),
    [
        (None, None), (None, 8), ("weights", None), ("projection", None), ("gates", None),
        ("score_spectra", None), ("updates", None),
    ],
)  # fmt: skip
def test_a_sample_never_waits_for_the_device(families: str | None, max_queries: int | None) -> None:
    config = BertConfig(
        vocab_size=60, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=12
    )
    model = BertModel(config, add_pooling_layer=False).eval().cuda()
    real = torch.arange(16) < torch.tensor([[9], [16]])
    batch = {"input_ids": torch.randint(1, 60, (2, 16)).cuda(), "attention_mask": real.long().cuda()}
    names = tuple(name for name in select(families) if not compares_samples(name))
    tap = Tap(model, (1, 2))

    def sample() -> SampleDerivation:
        """All that the training thread does: observe, derive, and start the copy."""
        measurement = Measurement({"": tap}, names, max_queries=max_queries)
        with undisturbed(model), measurement.observe():
            model(**batch)
        assert not measurement.failures
        return measurement.derive()

    def waits(function: Callable[[], object]) -> list[str]:
        """What waited for the device: transformers asks its mask, too, whether anything is padding."""
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                function()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return [str(warning.message) for warning in caught if "synchronizing" in str(warning.message)]

    def forward() -> None:
        with torch.no_grad():
            model(**batch)

    sample().finish()  # compiles the kernels, and makes the pinned buffer
    assert waits(torch.ones(1, device="cuda").item)
    assert waits(sample) == waits(forward)


def test_families_that_decompose_matrices_agree_with_the_host() -> None:
    config = BertConfig(
        vocab_size=60, hidden_size=96, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3
    )
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False).eval()
    batch = {"input_ids": torch.randint(1, 60, (3, 40))}
    names = tuple(n for n in select(["weights", "projection", "score_spectra"]) if not compares_samples(n))
    on_host, on_device = (
        _sampled(model.to(device), {name: x.to(device) for name, x in batch.items()}, names)
        for device in ("cpu", "cuda")
    )
    assert on_host.keys() == on_device.keys()
    assert on_host.keys() == set(names)
    for name, values in on_host.items():
        # effective ranks take roots of eigenvalues near 0
        scale = 1e-4 * max(1.0, float(np.nanmax(np.abs(values))))
        np.testing.assert_allclose(on_device[name], values, rtol=1e-4, atol=scale, err_msg=name)


def _sampled(
    model: BertModel, batch: dict[str, Tensor], names: tuple[str, ...]
) -> dict[str, np.ndarray[Any, Any]]:
    measurement = Measurement({"": Tap(model, (1, 2))}, names)
    measurement.score("", 3)
    with torch.no_grad(), measurement.observe():
        model(**batch)
    assert not measurement.failures
    (arrays,) = measurement.compute().stacks.values()
    return arrays


class _Encoder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=60, hidden_size=128, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2
        )
        self.model = BertModel(config, add_pooling_layer=False)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return self.model(**batch).last_hidden_state.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def _train(directory: Path, monitor: GeometryMonitor, *callbacks: pl.Callback) -> tuple[Any, dict[str, Any]]:
    module = _Encoder()
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(1, 60, (16,), generator=generator)} for _ in range(24)]
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, max_steps=6, callbacks=[monitor, *callbacks], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=directory,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, 4))  # type: ignore[arg-type]
    return load_history(directory / "lightning_geo" / "version_0"), module.state_dict()


def test_records_are_those_of_samples_that_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, weights = _train(tmp_path / "a", GeometryMonitor(2, strict=True))
    monkeypatch.setattr(pending_sample, "_outside", lambda device: False)
    waited, same_weights = _train(tmp_path / "b", GeometryMonitor(2, strict=True))
    assert beside.steps.tolist() == waited.steps.tolist() == [0, 2, 4, 6]
    for name in ("entropy", "effective_rank", "drift", "velocity", "redundancy"):
        np.testing.assert_array_equal(beside[name], waited[name], err_msg=name)
    for name, value in weights.items():
        assert torch.equal(value, same_weights[name]), name


def test_training_goes_on_before_matrices_are_decomposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decompose, go, steps = decomposition.principal_subspaces, threading.Event(), []

    def waits(covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        assert go.wait(60)
        return decompose(covariance, rank)

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            steps.append((trainer.global_step, go.is_set()))
            if trainer.global_step == 2:  # before the next sample, which would wait
                go.set()

    monkeypatch.setattr(role_moments, "principal_subspaces", waits)
    history, _ = _train(tmp_path, GeometryMonitor(4, strict=True), Steps())
    assert steps[:2] == [(1, False), (2, False)]
    assert history.steps.tolist() == [0, 4, 6]
