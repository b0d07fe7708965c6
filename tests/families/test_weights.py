"""The family ``weights`` against full d×d matrices in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from families.dense import READERS, drift, expected, overlaps, separate
from families.family import floats, text
from families.models import FAMILIES
from families.packaged import EVERY
from lightning_geo import measure
from lightning_geo.measurement.sample import Measurement
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.metrics.selection import select
from lightning_geo.observe import Tap

WEIGHTS = select("weights")
#: Ten times what was seen.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


def assert_is(arrays: dict[str, np.ndarray], layer: int, wanted: dict[str, np.ndarray]) -> None:
    for name, values in wanted.items():
        np.testing.assert_allclose(arrays[name][layer], values, **TOLERANCE, err_msg=name)
    drifts = {f"weight_drift.{role}" for role in ("query", "key", "value", "output")}
    assert set(arrays) - drifts <= set(wanted), "something is recorded that has no meaning here"


@pytest.mark.parametrize("name", READERS)
def test_every_metric_is_that_of_the_full_matrices(name: str) -> None:
    family = EVERY[name]
    model = family.build(family.implementations[0])
    padding = "right" if "right" in family.paddings else "none"
    record = measure(model, family.batch(padding), metrics="weights")
    for stack, (blocks, read) in READERS[name].items():
        for layer, block in enumerate(model.get_submodule(blocks)):
            assert_is(record.stacks[stack], layer, expected(read(block), cross=stack.endswith(".cross")))


def test_nothing_is_measured_that_nobody_asks_for() -> None:
    family = FAMILIES["bert"]
    record = measure(family.build("sdpa"), family.batch("none"))
    assert not set(record.stacks["encoder"]) & set(WEIGHTS)


def test_layers_of_any_width_are_summed_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_geo.functional.head_weights._TILE", 12)  # 32 is 12 + 12 + 8
    monkeypatch.setattr("lightning_geo.functional.head_weights._ROWS", 8)  # one head at a time
    test_every_metric_is_that_of_the_full_matrices("gpt_neox")
    test_every_metric_is_that_of_the_full_matrices("llama")


def test_adapters_count() -> None:
    from peft import LoraConfig, get_peft_model

    for name, targets in (("bert", ["query", "value"]), ("gpt2", ["c_attn"])):
        family = FAMILIES[name]
        [(stack, (blocks, read))] = READERS[name].items()
        adapted = get_peft_model(family.build("sdpa"), LoraConfig(r=2, target_modules=targets))
        with torch.no_grad():
            for path, parameter in adapted.named_parameters():
                if "lora_B" in path:
                    generator = torch.Generator().manual_seed(0)
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        record = measure(adapted, family.batch("none"), metrics="weights")
        untouched = measure(family.build("sdpa"), family.batch("none"), metrics="weights")
        assert np.abs(record["symmetry"] - untouched["symmetry"]).max() > 0.01
        merged = copy.deepcopy(adapted).merge_and_unload()
        for layer, block in enumerate(merged.get_submodule(blocks)):
            assert_is(record.stacks[stack], layer, expected(read(block)))


def test_adapters_that_are_no_addition_are_absent() -> None:
    from peft import LoraConfig, get_peft_model

    family = FAMILIES["bert"]
    adapted = get_peft_model(family.build("sdpa"), LoraConfig(r=2, target_modules=["query"], use_dora=True))
    record = measure(adapted, family.batch("none"), metrics="weights")
    assert "symmetry" not in record
    assert "ov_norm" in record


def small(name: str, **more: object) -> torch.nn.Module:
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 32,
        "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(name, **{**sizes, **more})).eval()


@pytest.mark.parametrize("name", ["qwen3", "olmo2"])
def test_where_queries_are_normed_names_tell_them_from_keys(name: str) -> None:
    model = small(name)
    record = measure(model, text("none"), metrics="weights")
    read = separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", shared=2)
    for layer, block in enumerate(model.layers):
        assert_is(record.stacks["layers"], layer, expected(read(block)))


def test_projections_that_no_single_weight_makes_are_absent() -> None:
    """deepseek_v3 compresses keys and values first."""
    model = small(
        "deepseek_v3", num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=8, head_dim=4, first_k_dense_replace=2,
    )  # fmt: skip
    tap, statistics = Tap(model), SampleStatistics(WEIGHTS)
    with torch.no_grad(), tap.open(statistics):
        model(**text("none"))
    assert not tap.failures
    assert all({"query", "key", "value"} <= set(roles) for roles in tap.unprojected.values())
    assert len(tap.unprojected) == 2
    found = {names for layer in statistics.layers.values() for names in layer.names.values()}
    assert not any("symmetry" in names for names in found)


def test_drift_is_that_of_the_read_directions() -> None:
    family = FAMILIES["llama"]
    model = family.build("sdpa")
    [(blocks, read)] = READERS["llama"].values()
    before = [read(copy.deepcopy(block)) for block in model.get_submodule(blocks)]
    tap, start = Tap(model), {}

    def sample() -> dict[str, np.ndarray]:
        measurement = Measurement({"": tap}, WEIGHTS, start=start)
        with torch.no_grad(), measurement.observe():
            model(**family.batch("none"))
        assert not measurement.failures
        return measurement.compute().stacks["layers"]

    first = sample()
    for role in ("query", "key", "value", "output"):
        np.testing.assert_array_equal(first[f"weight_drift.{role}"], 0.0)
    kept = start[""]["layers.0.self_attn"]
    assert {role: (tuple(w.shape), w.device.type) for role, w in kept.items()} == {
        "query": ((4, 8, 32), "cpu"), "key": ((2, 8, 32), "cpu"),
        "value": ((2, 8, 32), "cpu"), "output": ((4, 8, 32), "cpu"),
    }  # fmt: skip
    for size in (1e-3, 0.3):
        with torch.no_grad():
            for parameter in model.parameters():
                generator = torch.Generator().manual_seed(parameter.numel())
                parameter += size * parameter.std() * torch.randn(parameter.shape, generator=generator)
        second = sample()
        for layer, block in enumerate(model.get_submodule(blocks)):
            now = read(block)
            for role, weight in now.items():
                np.testing.assert_allclose(
                    second[f"weight_drift.{role}"][layer], drift(weight, before[layer][role], 4), rtol=2e-4
                )
    turned = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0))).Q
    again = Measurement({"": tap}, WEIGHTS, start=(fresh := {}))
    with torch.no_grad(), again.observe():
        model(**family.batch("none"))
    start.clear()
    start.update(fresh)
    with torch.no_grad():  # each head's own space may turn: what it reads does not
        weight = model.layers[0].self_attn.k_proj.weight
        weight.copy_((turned @ weight.unflatten(0, (2, 8))).flatten(0, 1))
    np.testing.assert_allclose(sample()["weight_drift.key"], 0.0, atol=1e-6)


def test_pairs_of_heads_are_kept() -> None:
    family = FAMILIES["llama"]
    model = family.build("sdpa")
    measurement = Measurement({"": Tap(model)}, WEIGHTS)
    with torch.no_grad(), measurement.observe():
        model(**family.batch("none"))
    matrices = measurement.compute().matrices()["layers"]
    [(blocks, read)] = READERS["llama"].values()
    for layer, block in enumerate(model.get_submodule(blocks)):
        heads = read(block)
        keys = np.repeat(np.repeat(overlaps(heads["key"]), 2, 0), 2, 1)
        np.testing.assert_allclose(matrices["pairs.read_overlap.key"][layer], keys, rtol=1e-6)
        np.testing.assert_allclose(
            matrices["pairs.write_overlap"][layer], overlaps(heads["output"]), rtol=4e-6
        )


def test_broken_and_silent_heads_have_no_value() -> None:
    family = FAMILIES["bert"]
    model = family.build("sdpa")
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight[:8] = torch.nan
        model.encoder.layer[1].attention.self.query.weight[8:16] = 0.0
    record = measure(model, family.batch("none"), metrics="weights")
    for name in ("symmetry", "qk_effective_rank", "qk_stable_rank", "qk_norm"):
        assert np.isnan(record[name][0, 0]), name
        assert np.isfinite(record[name][1, [0, 2, 3]]).all(), name
    assert np.isnan(record["symmetry"][1, 1])
    assert record["qk_norm"][1, 1] == 0
    assert np.isnan(record["layer_symmetry"][0])
    assert np.isfinite(record["ov_norm"]).all()
    [(blocks, read)] = READERS["bert"].values()
    sound = expected(read(model.get_submodule(blocks)[1]))
    np.testing.assert_allclose(record["layer_symmetry"][1], sound["layer_symmetry"], **TOLERANCE)


def test_a_model_run_several_times_is_weighed_once() -> None:
    family = FAMILIES["transformer_encoder"]
    model = family.build("sdpa")
    measurement = Measurement({"": Tap(model)}, WEIGHTS)
    with torch.no_grad(), measurement.observe():
        model(**floats("none"))
        model(**floats("none"))
    [statistics] = measurement._statistics.values()
    statistics.settle()
    for layer in statistics.layers.values():
        [group] = [name for name in layer.sums if name.startswith("weights.head(")]
        assert (layer.sums[group][1] <= 1).all()
