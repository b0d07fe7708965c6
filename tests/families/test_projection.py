"""The family ``projection`` against full projectors and score matrices in float64, through ``measure``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from families.dense import READERS, Heads
from families.matrices import mean_angle, projection_strength, score_norm_shares
from families.models import FAMILIES
from families.packaged import EVERY
from families.reference import Layer, layers_of
from lightning_geo import measure
from lightning_geo.functional import projection
from lightning_geo.functional.head_products import whitener
from lightning_geo.kernels import AttentionProblem
from lightning_geo.kernels.pairs import norm_shares
from lightning_geo.measurement.collectors import weights

Array = NDArray[np.float64]
CASES = [
    (name, padding)
    for name in READERS
    for padding in EVERY[name].paddings
    # torch's fast path hides what its layers are given once there is padding
    if padding != "left" and (name, padding) != ("transformer_encoder", "right")
]


def _given(
    model: nn.Module, batch: dict[str, torch.Tensor], block: nn.Module, stack: str
) -> dict[str, Array]:
    """What the attention module of a block is given by role: [B, N, d]."""
    found: dict[str, Array] = {}
    names = {"q": "query", "k": "key", "v": "value"}
    cross = stack.endswith(".cross")

    def hook(name: str) -> object:
        def see(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            roles = [names[name[0]]] if name[0] in "qkv" and "_key_" not in name else names.values()
            for role in ["query", "key", "value"] if name in ("query_key_value", "c_attn") else roles:
                found[role] = args[0].numpy()

        return see

    handles = []
    for path, module in block.named_modules():
        last = path.rpartition(".")[2]
        if ("EncDec" in path or "encoder_attn" in path) != cross:
            continue
        if isinstance(module, nn.MultiheadAttention):
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args: found.update(
                        zip(("query", "key", "value"), (a.numpy() for a in args), strict=True)
                    )
                )
            )
        elif hasattr(module, "weight") and last in (
            "q", "k", "v", "query", "key", "value", "q_proj", "k_proj", "v_proj", "query_key_value", "c_attn",
        ):  # fmt: skip
            handles.append(module.register_forward_pre_hook(hook(last)))
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return found


def _strength(x: Array, weight: Array, valid: Array) -> Array:
    """[h], over sequences."""
    sequences = [[projection_strength(s[rows], w) for w in weight] for s, rows in zip(x, valid, strict=True)]
    return np.mean(sequences, axis=0)


def _angle(one: Array, other: Array, heads: int) -> Array:
    one, other = (np.repeat(w, heads // len(w), axis=0) for w in (one, other))
    return np.array([mean_angle(a, b) for a, b in zip(one, other, strict=True)])


def _shares(layer: Layer) -> Array:
    """[3, head] over the first two sequences."""
    assert layer.query is not None
    assert layer.key is not None
    found = []
    for b in range(2):
        seen = layer.visible[b] & layer.queries[b][:, None]
        pairs = zip(layer.query[b], layer.key[b], strict=True)
        found.append(np.array([score_norm_shares(query, key, seen) for query, key in pairs]).T)
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("name", "padding"), CASES)
def test_every_metric_is_that_of_full_matrices(name: str, padding: str) -> None:
    family = EVERY[name]
    model = family.build(family.implementations[0]).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in family.batch(padding).items()}
    record = measure(model, batch, metrics="projection")
    layers = layers_of(name, padding)
    for stack, (blocks, read) in READERS[name].items():
        for index, block in enumerate(model.get_submodule(blocks)):
            arrays = {metric: values[index] for metric, values in record.stacks[stack].items()}
            weights: Heads = read(block)
            layer, heads = layers[stack][index], len(weights["query"])
            given = _given(model, batch, block, stack)
            for role in ("query", "key", "value"):
                valid = layer.queries if role == "query" else layer.keys
                expected = np.repeat(
                    _strength(given[role], weights[role], valid), heads // len(weights[role])
                )
                np.testing.assert_allclose(arrays.pop(f"projection_strength.{role}"), expected, rtol=5e-6)
            if not layer.cross:
                angle = _angle(weights["query"], weights["value"], heads)
                np.testing.assert_allclose(arrays.pop("query_value_angle"), angle, rtol=1e-6)
            angle = _angle(weights["key"], weights["value"], heads)
            np.testing.assert_allclose(arrays.pop("key_value_angle"), angle, rtol=1e-6)
            if layer.query is None:  # torch's own layers do not tell the reference
                continue
            for part, shares in zip(("query", "key", "direction"), _shares(layer), strict=True):
                np.testing.assert_allclose(arrays.pop(f"score_norm_share.{part}"), shares, atol=4e-5)
            assert not arrays


def test_single_precision_is_as_good() -> None:
    family = FAMILIES["gpt_neox"]
    single = measure(family.build("sdpa"), family.batch("right"), metrics="projection")
    double = measure(family.build("sdpa").double(), family.batch("right"), metrics="projection")
    for name in single:
        np.testing.assert_allclose(single[name], double[name], rtol=5e-5, atol=5e-6, err_msg=name)


@pytest.mark.parametrize(("name", "padding"), CASES)
def test_moments_of_tokens_say_what_tokens_do(
    name: str, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = EVERY[name]
    model, batch = family.build(family.implementations[0]), family.batch(padding)
    of_tokens = measure(model, batch, metrics="projection_strength")
    monkeypatch.setattr(weights, "_waits", lambda x: True)  # as on a GPU
    monkeypatch.setattr(projection, "_PART_BYTES", 1)  # a sequence at a time
    of_moments = measure(model, batch, metrics="projection_strength")
    assert of_tokens.stacks.keys() == of_moments.stacks.keys()
    for stack, arrays in of_tokens.stacks.items():
        assert arrays.keys() == of_moments.stacks[stack].keys()
        for metric, values in arrays.items():
            np.testing.assert_allclose(of_moments.stacks[stack][metric], values, rtol=2e-5, err_msg=metric)


@pytest.mark.parametrize("moments", [False, True])
def test_adapters_count_and_dimensions_that_are_not_there_do_not(
    moments: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_waits", lambda x: moments)
    family = FAMILIES["bert"]
    model = family.build("sdpa")
    with torch.no_grad():  # of 8 dimensions of head 1, 3 are left
        model.encoder.layer[0].attention.self.query.weight[11:16] = 0.0
    record = measure(model, family.batch("none"), metrics="projection")
    [(blocks, read)] = READERS["bert"].values()
    block = model.get_submodule(blocks)[0]
    given = _given(model, family.batch("none"), block, "encoder")
    expected = _strength(given["query"].astype(np.float64), read(block)["query"], np.ones((3, 12), bool))
    np.testing.assert_allclose(record["projection_strength.query"][0], expected, rtol=5e-6)


def test_what_is_not_finite_costs_its_own_sequence() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 5, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[2] = False  # no token at all
    mask[0, 4] = False
    y = torch.einsum("bnd,hkd->bnhk", x, weight) + 1
    x[0, 4] = y[0, 4] = torch.nan  # padding
    y[1, 0, 1, 2] = torch.inf
    reads = projection.HeadReads(x, weight, y, torch.ones(2, 3), mask, heads=4)
    total, count = projection.summed_moments(reads)
    assert count.tolist() == [2, 1]
    moments = projection.ReadMoments(total / count[:, None, None], whitener(reads.gram), heads=4)
    by_sequence = projection.projection_strength(reads)
    expected = torch.stack([by_sequence[:2, :2].mean(0), by_sequence[:1, 2:].mean(0)]).flatten()
    torch.testing.assert_close(projection.projection_strength(moments), expected)


def test_shares_do_not_depend_on_tiles() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 9, 5, generator=generator)
    key = torch.randn(2, 2, 11, 5, generator=generator)
    problem = AttentionProblem(query, key, 0.1, offset=2, right=0)
    whole = norm_shares(problem)
    torch.testing.assert_close(norm_shares(problem, 1), whole)
    torch.testing.assert_close(whole.sum(0), torch.ones(2, 4))
    flat = AttentionProblem(torch.ones(1, 1, 4, 2), torch.ones(1, 1, 4, 2), 1.0)
    assert norm_shares(flat).isnan().all()
