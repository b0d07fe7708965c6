"""Attention of a module's own softmax: one or several of them, what hides keys in scores, and slices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_geo import measure
from support.written_attention import LENGTH, Stack, close, entropy_of, pattern_of, rows, scores_of


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def differential(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    one = F.scaled_dot_product_attention(q, k, v)
    return one - 0.5 * F.scaled_dot_product_attention(q.flip(-1), k, v)


def joint(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (scores_of(q, k).softmax(-1) - 0.5 * scores_of(q.flip(-1), k).softmax(-1)) @ v


@pytest.mark.parametrize("attend", [differential, joint])
def test_two_attentions_of_a_module_are_named_parts_of_its_layer(attend: Callable[..., Tensor]) -> None:
    model, x = Stack(attend).eval(), torch.randn(3, LENGTH, 32)
    record = measure(model, x, metrics=["entropy"])
    assert rows(record) == {"layers": ["layers.0", "layers.1"], "layers.part2": ["layers.0", "layers.1"]}
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    close(record, "entropy", 0, entropy_of(scores_of(q.double(), k.double()).softmax(-1)))
    second = entropy_of(scores_of(q.double().flip(-1), k.double()).softmax(-1))
    np.testing.assert_allclose(record["layers.part2/entropy"][0], second, atol=1e-6)
    assert record["entropy"].shape == (2, 4)  # the bare name is the layer's own


def gated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ConViT: a second softmax is of positions, not of queries and keys."""
    places = torch.arange(q.shape[2], dtype=q.dtype)
    positional = (-(places[:, None] - places).abs()).softmax(-1)
    return (0.7 * scores_of(q, k).softmax(-1) + 0.3 * positional) @ v


def discarded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores_of(q.flip(-1), k).softmax(-1)
    return F.scaled_dot_product_attention(q, k, v)


def sequential(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.Sequential(nn.Softmax(-1), nn.Dropout(0.1).eval())(scores_of(q, k)) @ v


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Probabilities are used, but in no product that is known."""
    return (scores_of(q, k).softmax(-1)[..., None] * v[:, :, None]).sum(-2)


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k).mul_(q.shape[-1] ** -0.5)
    scores += torch.zeros(1, 1, 1, q.shape[2])
    return torch.einsum("bhij,bhjd->bhid", F.dropout(scores.softmax(-1), 0.1, False), v)


def transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys before queries, softmax over rows, values from the left."""
    return (v.mT @ (scores_of(k, q)).softmax(-2)).mT


@pytest.mark.parametrize("attend", [gated, discarded, sequential, summed, in_place, transposed])
def test_one_attention_of_queries_and_keys_is_one_layer(attend: Callable[..., Tensor]) -> None:
    model, x = Stack(attend).eval(), torch.randn(3, LENGTH, 32)
    record = measure(model, x, metrics=["entropy", "pattern"])
    assert rows(record) == {"layers": ["layers.0", "layers.1"]}
    assert record.coverage["left_out"] == {}
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    p = scores_of(q.double(), k.double()).softmax(-1)
    close(record, "entropy", 0, entropy_of(p))
    for name, expected in pattern_of(p, offset=0).items():
        close(record, name, 0, expected)


@pytest.mark.parametrize("offset", [0.0, -1e5])
def test_scores_of_a_diverging_model_hide_nothing(offset: float) -> None:
    """Far below what masks hide with, and still the softmax's own."""
    model, x = (
        Stack(lambda q, k, v: (scores_of(q, k) * 2000 + offset).softmax(-1) @ v),
        torch.randn(3, 12, 32),
    )
    record = measure(model.eval(), x, metrics=["entropy"])
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    scores = (scores_of(q, k) * 2000 + offset).double()
    assert scores.min() < -9000
    close(record, "entropy", 0, entropy_of(scores.softmax(-1)))
    expected = entropy_of(scores.softmax(-1)) / np.log(12)
    close(record, "normalized_entropy", 0, expected)
    np.testing.assert_allclose(record["max_logit"][0], scores.amax((0, 2, 3)), rtol=1e-5)


def test_learned_sinks_without_key_are_no_column() -> None:
    sinks = nn.Parameter(torch.randn(4))

    def with_sinks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        column = sinks.view(1, -1, 1, 1).expand(len(q), -1, q.shape[2], 1)
        return torch.cat([scores_of(q, k), column], dim=-1).softmax(-1)[..., :-1] @ v

    model, x = Stack(with_sinks).eval(), torch.randn(3, LENGTH, 32)
    record = measure(model, x, metrics=["entropy", "pattern"])
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    p = scores_of(q.double(), k.double()).softmax(-1)
    close(record, "entropy", 0, entropy_of(p))
    close(record, "self_mass", 0, pattern_of(p, offset=0)["self_mass"])


@pytest.mark.parametrize(
    "hide",
    [
        lambda scores, hidden: scores + hidden.long() * -10_000,
        lambda scores, hidden: scores + hidden.half() * -10_000,
        lambda scores, hidden: torch.add(scores, hidden.float(), alpha=-1e4),
        lambda scores, hidden: scores - 1e4 * hidden.float(),
        lambda scores, hidden: scores.masked_fill(hidden, -1e4),
        lambda scores, hidden: scores.where(~hidden, -100.0),
        lambda scores, hidden: torch.where(hidden, torch.full_like(scores, -1e9), scores),
        lambda scores, hidden: torch.minimum(scores, torch.where(hidden, -1e5, torch.inf)),
        lambda scores, hidden: scores.index_fill(-1, torch.tensor([LENGTH - 1]), -1e4),
    ],
)
def test_whatever_hides_keys_in_scores_hides_them(hide: Callable[[Tensor, Tensor], Tensor]) -> None:
    hidden = torch.arange(LENGTH) == LENGTH - 1

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return hide(scores_of(q, k), hidden).softmax(-1) @ v

    model, x = Stack(attend).eval(), torch.randn(3, LENGTH, 32)
    record = measure(model, x, metrics=["entropy"])
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    p = scores_of(q.double(), k.double()).masked_fill(hidden, -torch.inf).softmax(-1)
    real = (~hidden).expand(3, -1)  # a key that nobody sees is padding
    close(record, "entropy", 0, entropy_of(p, real))
    close(record, "normalized_entropy", 0, entropy_of(p, real) / np.log(LENGTH - 1))


@pytest.mark.parametrize("rows", [False, True])
def test_one_head_in_slices_is_one_head(rows: bool) -> None:
    def sliced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if rows:
            return torch.cat([scores_of(q[:, :, i : i + 4], k).softmax(-1) @ v for i in (0, 4, 8)], dim=2)
        return torch.cat([scores_of(q[i : i + 1], k[i : i + 1]).softmax(-1) @ v[i : i + 1] for i in range(3)])

    model, x = Stack(sliced).eval(), torch.randn(3, LENGTH, 32)
    for layer in model.layers:
        layer.num_heads, layer.size = 1, 32
    record = measure(model, x, metrics=["entropy"])
    assert [stack["heads"] for stack in record.model["stacks"].values()] == [[1, 1]]
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    close(record, "entropy", 0, entropy_of(scores_of(q.double(), k.double()).softmax(-1)))


def test_attention_in_slices_of_the_batch_is_one_attention() -> None:
    def sliced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [slice(0, 1), slice(1, 2), slice(2, 3)]
        return torch.cat([F.scaled_dot_product_attention(q[i], k[i], v[i]) for i in parts])

    model, x = Stack(sliced).eval(), torch.randn(3, LENGTH, 32)
    record = measure(model, x, metrics=["entropy"])
    assert rows(record) == {"layers": ["layers.0", "layers.1"]}
    with torch.no_grad():
        q, k, _ = model.layers[0].heads(x)
    close(record, "entropy", 0, entropy_of(scores_of(q.double(), k.double()).softmax(-1)))


@pytest.mark.parametrize("by_hand", [False, True])
def test_attention_between_channels_is_absent_and_said(by_hand: bool) -> None:
    def channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if by_hand:
            q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
            return ((q.mT @ k).softmax(-1) @ v.mT).mT
        return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT

    model = Stack(channels).eval()
    model.layers[1].attend = F.scaled_dot_product_attention
    record = measure(model, torch.randn(3, LENGTH, 32), metrics=["entropy"])
    assert rows(record) == {"layers": ["layers.1"]}
    ((reason, modules),) = record.coverage["left_out"].items()
    assert "between channels" in reason
    assert modules == ["layers.0"]
    assert (record.coverage["seen"], record.coverage["measured"]) == (2, 1)
