"""TorchScript inside of a model, or all of it: never a reason to lose a sample, and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_geo import GeometryMonitor, load_history, measure
from lightning_geo.observe import Tap
from lightning_geo.observe.heads.head_factors import scaled_heads
from lightning_geo.observe.module_selection import candidates
from lightning_geo.observe.replay.torchscript import scripted_attention
from lightning_geo.observe.replay.undisturbed_run import undisturbed
from support.lit import Lit, fit
from support.same import assert_same, outcome

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

DATA = list(torch.randn(16, 6, 16, generator=torch.Generator().manual_seed(2)))
Make = Callable[[nn.Module], nn.Module]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class ByHand(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        return (F.softmax(q @ k.transpose(-1, -2), dim=-1) @ v).transpose(1, 2).flatten(2)


class Counting(nn.Module):
    """Changes whatever a scripted forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.last = torch.zeros(1)
        self.linear, self.drop, self.norm = nn.Linear(16, 16), nn.Dropout(0.3), nn.BatchNorm1d(16)
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.sum()
        self.total += 1
        return self.drop(self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, feed: nn.Module) -> None:
        super().__init__()
        self.attention, self.feed = attention, feed

    def forward(self, x: Tensor) -> Tensor:
        return x + self.feed(x + self.attention(x))


def model(attention: Make = nn.Identity, feed: Make = nn.Identity, kind: type[nn.Module] = Attention) -> Any:
    """Two layers; the first one's parts are made by what is given."""
    torch.manual_seed(0)
    take = {nn.Identity: lambda part: part}
    first = Block(take.get(attention, attention)(kind()), take.get(feed, feed)(Counting()))  # type: ignore[call-overload]
    return nn.Sequential(first, Block(Attention(), Counting()), nn.Linear(16, 1))


def trace(part: nn.Module) -> nn.Module:
    return torch.jit.trace(part, torch.stack(DATA[:4]))  # type: ignore[no-any-return]


def state(part: Any) -> dict[str, Any]:
    found = {name: value.clone() for name, value in part.state_dict().items()}
    for name, inner in part.named_modules():
        found |= {
            f"{name}.{key}": getattr(inner, key) for key in ("training", "calls") if hasattr(inner, key)
        }
    return found


@pytest.mark.parametrize("training", [False, True])
def test_a_scripted_part_costs_nothing(training: bool) -> None:
    plain, scripted = model().train(training), model(feed=torch.jit.script).train(training)
    x = torch.stack(DATA[:4])
    for either in (scripted, plain):
        torch.manual_seed(1)
        either(x)
    before = state(scripted)
    ours, theirs = measure(scripted, x), measure(plain, x)
    assert set(ours) == set(theirs)
    for key in theirs:
        np.testing.assert_allclose(ours[key], theirs[key], atol=1e-6, err_msg=key)
    assert_same(state(scripted), before)


@pytest.mark.parametrize("kind", [Attention, ByHand])
@pytest.mark.parametrize("make", [torch.jit.script, trace])
def test_attention_inside_is_absent_and_said(make: Make, kind: type[nn.Module]) -> None:
    x, hidden, plain = torch.stack(DATA[:4]), model(make, kind=kind).eval(), model(kind=kind).eval()
    found, expected = (measure(m, x, metrics=["entropy"])["entropy"] for m in (hidden, plain))
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)
    tap = Tap(hidden)
    with undisturbed(hidden), scaled_heads(tap, lambda key, call: None):
        hidden(x)
    (reason,), modules = tap.coverage.left_out, list(tap.coverage.left_out.values())
    assert "TorchScript" in reason
    assert modules == [["0.attention"]]


def test_attention_is_told_by_what_a_graph_computes() -> None:
    script = torch.jit.script
    parts = {
        "attention": script(Attention()),
        "hand": script(ByHand()),
        "mha": script(nn.MultiheadAttention(16, 2)),
        "feed": script(Counting()),
        "classifier": script(nn.Sequential(nn.Linear(16, 3), nn.Softmax(-1))),
        "plain": Attention(),
    }
    assert scripted_attention(parts) == ["attention", "hand", "mha"]
    inside = dict(script(nn.Sequential(Block(Attention(), Counting()))).named_modules())
    assert scripted_attention(inside) == ["0.attention"]


@pytest.mark.parametrize("make", [torch.jit.script, trace])
def test_a_model_that_is_scripted_as_a_whole(make: Make) -> None:
    whole = make(model().eval())
    with pytest.raises(ValueError, match=r"TorchScript computes attention in 0.attention, 1.attention"):
        measure(whole, torch.stack(DATA[:4]))


def test_one_that_training_scripts_is_no_candidate() -> None:
    root = nn.Module()
    root.plain, root.scripted = model(), torch.jit.script(model())
    assert list(candidates(root, None)) == ["plain", ""]
    with pytest.raises(ValueError, match="'scripted' is TorchScript"):
        candidates(root, "scripted")


class Regression(Lit):
    def loss(self, batch: Any) -> Tensor:
        return self.model(batch).square().mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_training_is_as_without(source: str, tmp_path: Path) -> None:
    def train(directory: Path, *callbacks: Any) -> dict[str, Any]:
        module = Regression(lambda: model(feed=torch.jit.script))
        data: Any = DataLoader(DATA, batch_size=4)  # type: ignore[arg-type]
        return outcome(fit(directory, module, *callbacks, data=data, steps=3), module)

    alone = train(tmp_path / "alone")
    monitor = GeometryMonitor(every_n_steps=1, source=source, metrics=["entropy", "stream"], strict=True)
    assert_same(train(tmp_path / "watched", monitor), alone)
    entropy = load_history(tmp_path / "watched" / "lightning_geo" / "version_0")["entropy"]
    assert entropy.shape[1:] == (3, 2)  # the end is in the list
