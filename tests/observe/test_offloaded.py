"""Parameters that lie elsewhere while a model waits: accelerate leaves placeholders without data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightning_geo import measure
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.selection import select
from lightning_geo.observe import Tap
from lightning_geo.observe.replay.undisturbed_run import Call, device_of, undisturbed
from support.lit import bert, gpt2, sequences


@pytest.fixture
def batch() -> dict[str, Tensor]:
    found: dict[str, Tensor] = default_collate(sequences(3))
    return found


def offloaded(model: nn.Module, directory: Path | None = None) -> nn.Module:
    """The same model, its parameters in main memory or in files."""
    device = torch.device("cpu")
    if directory is None:
        cpu_offload(model, execution_device=device)
    else:
        disk_offload(model, str(directory), execution_device=device)
    assert all(p.is_meta for p in model.parameters())
    return model


@pytest.mark.parametrize("build", [bert, gpt2])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_numbers_are_those_of_the_model_with_its_parameters(
    build: Any, where: str, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    names = ["entropy", "pattern", "cone", "subspace", "stream", "head", "importance", "gates"]
    if build is gpt2:
        batch["labels"] = batch["input_ids"]
    expected = measure(model, batch, metrics=names)
    found = measure(offloaded(model, tmp_path if where == "disk" else None), batch, metrics=names)
    assert set(found) == set(expected)
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-5, err_msg=key)
    assert all(p.is_meta for p in model.parameters())


def test_what_reads_parameters_is_absent_and_said(batch: dict[str, Tensor]) -> None:
    model = offloaded(bert().eval())
    record = measure(model, batch, metrics=["entropy", "weights", "projection"])
    weightless = measure(bert().eval(), batch, metrics=["entropy", "score_norm_share"])
    assert set(record) == set(weightless)
    measurement = Measurement({"": Tap(model)}, select(["weights"]))
    with undisturbed(model), measurement.observe():
        model(**batch)
    assert measurement.failures == []
    name = "bert.encoder.layer.{}.attention.self"
    assert measurement.unprojected == {name.format(i): ["query", "key", "value", "output"] for i in range(2)}


class Empty(nn.Module):
    """A module that may have a parameter, and a hook of accelerate."""

    def __init__(self, device: str | None = None, hook: Any = None) -> None:
        super().__init__()
        if device is not None:
            self.weight = nn.Parameter(torch.empty(1, device=device))
        if hook is not None:
            self._hf_hook = hook


def hook(device: Any) -> Any:
    return SimpleNamespace(execution_device=device)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([Empty("cpu")], "cpu"),
        ([Empty("meta", hook("cpu"))], "cpu"),
        ([Empty("meta", hook(1))], "cuda:1"),
        ([Empty("meta", hook(torch.device("cuda", 2))), Empty("cpu")], "cuda:2"),
        ([Empty("meta", hook(None)), Empty("meta", hook("cuda:1"))], "cuda:1"),
        ([Empty("meta", SimpleNamespace(hooks=[object(), hook("cuda:1")]))], "cuda:1"),
        ([Empty("meta"), Empty("cpu")], "cpu"),
        ([nn.BatchNorm1d(1, affine=False)], "cpu"),
        ([Empty("meta")], "cpu"),
        ([], "cpu"),
    ],
)
def test_the_device_is_where_the_model_computes(parts: list[nn.Module], expected: str) -> None:
    assert device_of(nn.Sequential(*parts)) == torch.device(expected)


def test_without_parameters_the_inputs_decide() -> None:
    given = SimpleNamespace(tensors=lambda: [torch.empty(1, device="meta"), torch.empty(1)])
    assert device_of(Empty("meta"), given).type == "cpu"  # type: ignore[arg-type]
    assert device_of(nn.ReLU(), Call()).type == "cpu"
