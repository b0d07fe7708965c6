"""One record of one batch: what it holds, what it takes, and that the model is as it was before."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightning_geo import GeometryRecord, measure
from lightning_geo.functional import attention_statistics
from support.lit import bert, gpt2, sequences
from support.same import attention_lookup

HEADS, WIDTH = 2, 16


class Attention(nn.Module):
    """Attention as people write it by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each [B, H, N, D]."""
        return self.project(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = self.heads(x)
        mask = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(2)


class Model(nn.Module):
    """A residual stream of them, with all that a forward may touch: dropout, a buffer, every generator."""

    def __init__(self, layers: int = 3, fails: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(layers))
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.fails = fails

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.remembered = random.random() + np.random.rand() + float(torch.rand(()))
        for layer in self.layers:
            x = x + self.dropout(layer(x, mask))
        if self.fails:
            raise ArithmeticError("the model's own")
        return x


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return {"x": torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(1))}


def assert_equal(ours: GeometryRecord, theirs: GeometryRecord) -> None:
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


@pytest.mark.parametrize("names", [["x"], ["x", "mask"]], ids=["plain", "masked"])
def test_a_record_is_what_the_functions_give_by_hand(
    model: Model, batch: dict[str, Tensor], names: list[str]
) -> None:
    inputs = {**batch, "mask": torch.arange(7) < torch.tensor([[7], [4], [6]])}
    record = measure(model, {name: inputs[name] for name in names})
    valid = inputs["mask"] if "mask" in names else torch.ones(3, 7, dtype=torch.bool)
    x = batch["x"]
    for index, layer in enumerate(model.layers):
        query, key, _ = layer.heads(x)
        by_hand = attention_statistics(query, key, mask=valid[:, None, None], query_mask=valid)
        for name in ("entropy", "self_mass", "previous_mass", "attention_distance"):
            plane = getattr(by_hand, name)  # [B, H, N]; NaN in padded rows
            expected = plane.nanmean(-1).mean(0).detach().numpy()
            np.testing.assert_allclose(record[name][index], expected, rtol=1e-5, err_msg=name)
        norm = (query.norm(dim=-1) * valid[:, None]).sum(-1) / valid.sum(-1)[:, None]
        np.testing.assert_allclose(record["query_norm"][index], norm.mean(0).detach().numpy(), rtol=1e-5)
        x = x + layer(x, inputs["mask"] if "mask" in names else None)


def test_a_batch_is_a_mapping_a_tuple_or_a_tensor(model: Model, batch: dict[str, Tensor]) -> None:
    x, mask = batch["x"], torch.arange(7).expand(3, 7) < 5
    assert_equal(measure(model, x), measure(model, {"x": x}))
    whole = measure(model, {"x": x, "mask": mask})
    assert_equal(measure(model, (x, mask)), whole)
    assert_equal(measure(model, [x, mask]), whole)
    assert not np.array_equal(measure(model, x)["entropy"], whole["entropy"])


def test_a_record_says_what_it_is_of(model: Model, batch: dict[str, Tensor]) -> None:
    record = measure(model, batch)
    assert list(record.stacks) == list(record.model["stacks"]) == ["layers"]
    assert record.model["class"] == "Model"
    assert "layers.2" in repr(record.model)
    assert record.cost_seconds > 0
    assert record.wall_time > 0
    assert not [key for key in record if key.split(".")[0] in ("drift", "velocity")]
    assert record["entropy"].shape == (3, HEADS)
    assert record["entropy"].dtype == np.float32
    assert record["effective_rank"].shape == (3, HEADS, 4)


def test_metrics_chooses_what_is_measured(model: Model, batch: dict[str, Tensor]) -> None:
    whole = measure(model, batch)
    some = measure(model, batch, metrics=["metric:entropy", "effective_rank.query", "drift"])
    assert some.keys() == ["entropy", "effective_rank.query"]
    for key in some:
        np.testing.assert_allclose(some[key], whole[key], rtol=1e-6)
    assert set(measure(model, batch, metrics="pattern")) == {
        "self_mass", "previous_mass", "next_mass", "first_mass", "backward_mass", "forward_mass",
        "attention_distance"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "kept"), [(1, [1]), ([0, 2], [0, 2]), (r"layers\.[12]", [1, 2]), (None, [0, 1, 2])]
)
def test_layers_that_are_not_chosen_have_no_value(
    model: Model, batch: dict[str, Tensor], layers: Any, kept: list[int]
) -> None:
    whole, some = measure(model, batch), measure(model, batch, layers=layers)
    assert some.keys() == whole.keys()
    for key in whole:
        expected = np.full_like(whole[key], np.nan)
        if key == "weight_similarity":  # compares the layers that are chosen
            assert np.isnan(some[key][np.setdiff1d(np.arange(len(expected)), kept)]).all()
            continue
        expected[kept] = whole[key][kept]
        # other layers are decomposed together, which rounds otherwise
        np.testing.assert_allclose(some[key], expected, rtol=1e-4, atol=1e-5, err_msg=key)


def test_special_tokens_are_given_or_the_configs() -> None:
    batch = default_collate(sequences(4))
    torch.manual_seed(0)
    causal = gpt2(attn_implementation="eager").eval()  # its config names 1 and 2
    del batch["labels"]
    np.testing.assert_array_equal(
        measure(causal, batch)["special_mass"],
        measure(causal, batch, special_token_ids=[1, 2])["special_mass"],
    )
    for special in ([1, 2], [1], [40, 41, 42]):
        record = measure(causal, batch, special_token_ids=special)
        attentions = causal(**batch, output_attentions=True).attentions
        mask, keys = batch["attention_mask"].bool(), torch.isin(batch["input_ids"], torch.tensor(special))
        for layer, p in enumerate(attentions):
            rows = (p * keys[:, None, None]).sum(-1) * mask[:, None]
            expected = (rows.sum(-1) / mask.sum(-1)[:, None]).mean(0).detach().numpy()
            np.testing.assert_allclose(record["special_mass"][layer], expected, rtol=1e-5, atol=1e-7)
    assert "special_mass" not in measure(bert(), batch)


# -- the model and the process are as before


def surroundings(model: nn.Module) -> dict[str, Any]:
    """All that measuring might leave changed, in a form that can be compared."""
    hooks = {
        f"{name}.{kind}": dict(value)
        for name, part in model.named_modules()
        for kind, value in vars(part).items()
        if "_hooks" in kind and isinstance(value, dict)
    }
    attributes = {n: {k: v for k, v in vars(m).items() if k[0] != "_"} for n, m in model.named_modules()}
    return {
        "hooks": hooks,
        "attributes": attributes,
        "forward": {n: "forward" in vars(m) for n, m in model.named_modules()},
        "state": {n: x.tolist() for n, x in [*model.named_parameters(), *model.named_buffers()]},
        "gradients": [p.grad for p in model.parameters()],
        "random": (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()),
        "process": (
            attention_lookup(), torch.backends.mha.get_fastpath_enabled(),
            torch._C._len_torch_function_stack(), torch.is_grad_enabled(), torch.get_default_dtype(),
            torch.is_inference_mode_enabled(),
        ),
    }  # fmt: skip


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def fails() -> nn.Module:
    return Model(fails=True)


def with_a_hook() -> nn.Module:
    model = Model()
    model.layers[0].register_forward_hook(lambda module, args, output: output)
    return model


@pytest.mark.parametrize("fastpath", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("build", [Model, encoder, with_a_hook, fails])
def test_model_and_process_are_as_before(
    build: Callable[[], nn.Module], train: bool, fastpath: bool, batch: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = build().train(train)
    next(model.children()).train(not train)  # flags that differ within the model
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", fastpath)
    before = copy.deepcopy({k: v for k, v in surroundings(model).items() if k not in ("hooks", "attributes")})
    shallow = {k: v for k, v in surroundings(model).items() if k in ("hooks", "attributes")}
    if build is fails:
        with pytest.raises(ArithmeticError, match="the model's own"):
            measure(model, batch["x"])
    else:
        measure(model, batch["x"])
    after = surroundings(model)
    for name, value in {**before, **shallow}.items():
        assert after[name] == value, name


def test_a_routed_model_is_as_before_also_when_it_raises() -> None:
    model = bert().train()
    before = surroundings(model)
    batch = default_collate(sequences(4))
    measure(model, batch)
    assert surroundings(model) == before
    model.classifier.register_forward_pre_hook(lambda module, args: 1 / 0)
    before = surroundings(model)
    with pytest.raises(ZeroDivisionError):
        measure(model, batch)
    assert surroundings(model) == before


def test_two_calls_give_the_same_record_whatever_the_generators_hold(batch: dict[str, Tensor]) -> None:
    class Drawing(Model):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().forward(x + torch.randn_like(x) + random.random(), mask)

    model = Drawing()
    first = measure(model, batch)
    torch.rand(5), random.random()
    assert_equal(measure(model, batch), first)


# -- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["entropi"]}, r"`metrics` .* got 'entropi'\. Did you mean 'entropy'"),
        ({"metrics": "effective_rnk"}, "Did you mean 'effective_rank'"),
        ({"metrics": []}, "`metrics` to name at least one"),
        ({"metrics": ["drift"]}, "`metrics` to name more than what compares samples but got"),
        ({"layers": 3}, r"`layers` to match at least one layer but got 3.*\{'layers': 3\}"),
        ({"layers": [7, 9]}, r"`layers` to match at least one layer but got \[7, 9\]"),
        ({"layers": "decoder"}, "`layers` to match the name of a module but 'decoder'"),
        ({"layers": "dropout"}, "`layers` to match at least one layer but got 'dropout'"),
        ({"layers": "(", }, r"`layers` to be a valid regular expression but got '\('"),
        ({"rank": 0}, "`rank` to be an integer of at least 1 but got 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    model: Model, batch: dict[str, Tensor], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(model, batch, **options)


def test_a_model_without_attention_is_named() -> None:
    with pytest.raises(ValueError, match="`model` to compute attention but Sequential showed none"):
        measure(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))


def test_other_types_are_refused(model: Model, batch: dict[str, Tensor]) -> None:
    with pytest.raises(TypeError, match="`layers` to be a pattern or layer indices"):
        measure(model, batch, layers=-1)
    with pytest.raises(TypeError, match="`special_token_ids` to be a list of token ids but got '101'"):
        measure(model, batch, special_token_ids="101")
