"""Stacks, models and modules have the same names whatever the source, and no message leaves one empty."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_geo import GeometryMonitor, GeometryRecord, load_history, measure
from lightning_geo.analysis.pruning import Head
from lightning_geo.interventions.ablation import Silencer
from lightning_geo.observe.replay.undisturbed_run import Call
from support.lit import Classifier, Lit, bert, fit

WIDTH = 8


class Attention(nn.Module):
    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.heads = nn.Linear(WIDTH, 3 * WIDTH), heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Part(nn.Module):
    """Layers of attention on embedded tokens, or on what it is given."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Sequential(Attention(), nn.Linear(WIDTH, WIDTH)) for _ in range(layers)]
        )
        self.embed = nn.Embedding(60, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Towers(Lit):
    """Calls two models one after the other."""

    def __init__(self) -> None:
        super().__init__(nn.Identity)
        self.text, self.image = Part(2), Part(3)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return (self.text(batch["input_ids"]).mean() - self.image(batch["input_ids"]).mean()).square()


class Chain(Towers):
    """Calls itself: one of the two models feeds the other."""

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch["input_ids"]).square().mean()  # type: ignore[no-any-return]

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.image(self.text(input_ids))  # type: ignore[no-any-return]


class Own(Chain):
    """Has an attention beside them, and a loss with modules in it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.criterion = Attention(4), nn.Sequential(nn.Identity())

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.criterion(self.pool(super().forward(input_ids)))  # type: ignore[no-any-return]


class Through(Lit):
    """Calls itself, and passes on to its one model."""

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self(**batch).loss  # type: ignore[no-any-return]


MODULES: dict[str, tuple[Callable[[], Lit], dict[str, Any], list[str]]] = {
    "one model": (Classifier, {}, ["bert.encoder"]),
    "one model, through itself": (lambda: Through(bert), {}, ["bert.encoder"]),
    "two towers": (Towers, {}, ["text.layers", "image.layers"]),
    "itself": (Chain, {}, ["text", "image"]),
    "itself with an attention of its own": (Own, {}, ["text", "image", "model"]),
    "a named module": (Towers, {"module": "image"}, ["layers"]),
    "a named attention": (Own, {"module": "pool"}, ["model"]),
}


def sample(path: Path, lit: Lit, **options: Any) -> GeometryRecord:
    strategy = options.pop("strategy", "auto")
    monitor = GeometryMonitor(1, metrics=["metric:entropy"], **options)
    fit(path, lit, monitor, steps=2, strategy=strategy)
    history = load_history(path / "lightning_geo" / "version_0")
    assert history.steps.tolist()[:2] == [0, 1]
    return history.record(0)


@pytest.mark.parametrize("strategy", ["auto", "ddp_find_unused_parameters_true"])
@pytest.mark.parametrize("name", MODULES)
def test_both_sources_and_strategies_give_the_same_names(name: str, strategy: str, tmp_path: Path) -> None:
    build, options, stacks = MODULES[name]
    for source in ("probe", "batch"):
        record = sample(tmp_path / source, build(), source=source, strategy=strategy, **options)
        assert list(record.stacks) == stacks
        if source == "probe":
            expected = record.model
        assert record.model == expected
        assert all(module for stack in expected["stacks"].values() for module in stack["modules"])


class Kept(Towers):
    """One of its towers is handed what a probe cannot keep: it comes with the batch, or is made of it."""

    def __init__(self, *, early: bool) -> None:
        super().__init__()
        self.image, self.early = Unwraps(3), early
        self.image.layers[0][0].__class__ = type("SelfAttention", (Attention,), {})

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return {**batch, "wrapped": self.wrap(batch)} if self.early else batch

    @staticmethod
    def wrap(batch: dict[str, Tensor]) -> object:
        class Wrapped:
            content = batch["input_ids"]

        return Wrapped()

    def loss(self, batch: dict[str, Any]) -> Tensor:
        wrapped = batch["wrapped"] if self.early else self.wrap(batch)
        return self.text(batch["input_ids"]).mean() - self.image(wrapped).square().mean()


class Unwraps(Part):
    def forward(self, x: Any) -> Tensor:
        return super().forward(getattr(x, "content", x))


def test_a_tower_of_which_no_call_can_be_recorded_is_said_to_be_missing(tmp_path: Path) -> None:
    said = "record lacks it.*image: Expected `x` to be .* of type Wrapped cannot be kept: pass tensors"
    with pytest.warns(UserWarning, match=said):
        record = sample(tmp_path, Kept(early=True))
    assert list(record.stacks) == ["layers"]


def test_a_tower_of_which_no_call_can_be_recorded_is_shown_by_the_step(tmp_path: Path) -> None:
    record = sample(tmp_path, Kept(early=False))
    assert list(record.stacks) == ["text.layers", "image.layers"]


def messages(run: Callable[[], Any]) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return "\n".join(str(w.message) for w in caught if "GeometryMonitor" in str(w.message))


class Linear(nn.Module):
    """Looks like an attention and shows none."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


LinearAttention = type("LinearAttention", (Linear,), {})


def test_a_model_that_is_itself_what_is_missing_goes_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"showed none.*\{'LinearAttention': 'LinearAttention'\}"):
        measure(LinearAttention(), torch.randn(2, 3, WIDTH))
    with pytest.raises(ValueError, match=r"attention modules: \['Attention'\]"):
        measure(Attention(), torch.randn(2, 3, WIDTH), layers=7)
    with pytest.raises(ValueError, match="such as 'Identity'"):
        measure(nn.Identity(), torch.randn(2, 3, WIDTH), layers="nothing")


def test_a_named_module_goes_by_its_class_where_it_fails(tmp_path: Path) -> None:
    module = Own()
    run = lambda: fit(tmp_path, module, GeometryMonitor(1, module="criterion"), steps=1)  # noqa: E731
    assert "no attention was seen in Sequential." in messages(run)
    module = Own()
    given = {"probe": {"x": torch.zeros(1)}, "module": "pool"}
    with pytest.raises(ValueError, match=r"every candidate failed\. Attention: RuntimeError"):
        fit(tmp_path, module, GeometryMonitor(1, **given), steps=1)  # type: ignore[arg-type]


def test_heads_that_cannot_be_silenced_are_those_of_a_named_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Attention(), torch.randn(2, 3, WIDTH)
    silencer = Silencer(model, Call((x,)))
    wrong = torch.ones(1, 5)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: wrong)
    with (
        pytest.raises(ValueError, match="factor of 'Attention' to be"),
        silencer.silenced([Head("model", 0, 0)]),
    ):
        model(x)


def test_the_importance_of_a_frozen_model_is_absent_in_a_named_module(tmp_path: Path) -> None:
    class Frozen(Own):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.image.parameters(), lr=0.1)

        def loss(self, batch: dict[str, Tensor]) -> Tensor:
            self.pool.requires_grad_(False)
            extra = self.pool(self.image.embed(batch["input_ids"]).detach())
            return self.image(batch["input_ids"]).mean() + extra.mean()

    monitor = GeometryMonitor(1, source="batch", module="pool", metrics=["importance", "metric:entropy"])
    said = messages(lambda: fit(tmp_path, Frozen(), monitor, steps=1))
    assert "in Attention: the training gradient does not reach it" in said


def test_activations_that_are_not_finite_are_those_of_both_towers(tmp_path: Path) -> None:
    module = Towers()
    with torch.no_grad():
        for tower in (module.text, module.image):
            tower.layers[0][0].qkv.weight.fill_(torch.nan)
    said = messages(lambda: sample(tmp_path, module))
    assert "text.layers.0.0" in said
    assert "image.layers.0.0" in said
