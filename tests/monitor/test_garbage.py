"""Python's garbage collector waits while a sample is taken, and is as it was afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_geo import watch
from lightning_geo.observe.replay.undisturbed_run import replay_depth


class Net(nn.Module):
    """Notes whether the collector is on, in training and in samples of the probe."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        NOTED.append((replay_depth() > 0, gc.isenabled()))
        if self.fails and replay_depth():
            raise RuntimeError("only in a sample")
        return self.attention(x, x, x)[0]  # type: ignore[no-any-return]


NOTED: list[tuple[bool, bool]] = []


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    NOTED.clear()
    yield
    gc.enable()


def trained(directory: Path, model: Net, steps: int = 4, fails_at: int | None = None) -> list[bool]:
    """Whether the collector is on after each step."""
    optimizer, on = torch.optim.SGD(model.parameters(), 0.1), []
    with watch(model, every_n_steps=2, logdir=str(directory)) as geometry:
        for step in range(steps):
            model.fails = model.fails or step == fails_at
            model(torch.randn(2, 5, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            geometry.step()
            on.append(gc.isenabled())
    return on


def test_the_collector_waits_for_samples_alone(tmp_path: Path) -> None:
    assert all(trained(tmp_path, Net()))
    in_samples = [on for sample, on in NOTED if sample]
    assert all(on for sample, on in NOTED if not sample)
    assert not in_samples[-1]  # of the last one: the first inputs are tried out before they are sampled


def test_it_is_on_again_after_a_sample_that_fails(tmp_path: Path) -> None:
    model = Net()
    with pytest.warns(UserWarning, match="a sample was dropped"):
        assert all(trained(tmp_path, model, steps=5, fails_at=3))
    assert model.fails


def test_it_stays_off_where_training_has_turned_it_off(tmp_path: Path) -> None:
    gc.disable()
    assert not any(trained(tmp_path, Net()))
