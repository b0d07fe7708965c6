"""Which inputs and layers a monitor measures, and what it measures against."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from lightning_geo import GeometryMonitor, load_history, measure
from lightning_geo.measurement.sample_statistics import SampleStatistics as Statistics
from support.close_records import assert_close, joined
from support.lit import Causal, Classifier, Lit, fit, loader, sequences
from support.same import records

QUIET: dict[str, Any] = {"special_token_ids": [1], "strict": True}


def test_the_probe_is_recorded_from_the_sanity_check_or_else_from_the_first_step(tmp_path: Path) -> None:
    """And it is the same to the fingerprint however it came: recorded, as a batch, as a dataloader."""
    seven = joined(*itertools.islice(loader(7, batch_size=7), 1))
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "sanity": ({}, {"validation": loader(), "data": loader(seed=5)}),
        "first step": ({}, {"validation": loader(seed=5), "num_sanity_val_steps": 0}),
        "accumulated": ({}, {"accumulate_grad_batches": 2}),
        "batch": ({"probe": seven}, {"data": loader(seed=6)}),
        "dataloader": ({"probe": loader(batch_size=3)}, {"data": loader(seed=6)}),
    }
    found = {}
    for name, (monitor, options) in ways.items():
        monitor = {"probe_size": 4 if name == "first step" else 7, **monitor}
        fit(tmp_path / name, Classifier(), GeometryMonitor(9, **QUIET, **monitor), steps=1, **options)
        found[name] = records(tmp_path / name)[0]
    module = Classifier()
    assert_close(found["first step"], measure(module.model, next(iter(loader())), special_token_ids=[1]))
    alone = measure(module.model, seven, special_token_ids=[1])
    for name, record in found.items():
        assert (record.probe_fingerprint == found["batch"].probe_fingerprint) == (name != "first step"), name
        if name != "first step":
            assert_close(record, alone, divided=True)


@pytest.mark.parametrize(
    ("name", "probe", "observed"),
    [("model", None, "bert.encoder"), ("model.bert", None, "encoder"), (None, "input_ids", "bert.encoder")],
)
def test_module_names_the_observed_one(name: str | None, probe: Any, observed: str, tmp_path: Path) -> None:
    probe = probe and next(iter(loader()))["input_ids"]  # a tensor is the one argument
    fit(tmp_path, Classifier(), GeometryMonitor(9, module=name, probe=probe, **QUIET), steps=1)
    assert list(records(tmp_path)[0].stacks) == [observed]


@pytest.mark.parametrize("layers", [1, [1], r"layer\.1\.", r"^bert\.encoder\.layer\.1"])
@pytest.mark.parametrize("source", ["probe", "batch"])
def test_layers_leaves_the_others_out(layers: Any, source: Any, tmp_path: Path) -> None:
    fit(tmp_path / "all", Classifier(dropout=0.0), GeometryMonitor(1, source=source, **QUIET), steps=3)
    some = GeometryMonitor(1, source=source, layers=layers, **QUIET)
    with patch.object(Statistics, "expect", autospec=True, side_effect=Statistics.expect) as narrowly:
        fit(tmp_path / "some", Classifier(dropout=0.0), some, steps=3)
    assert narrowly.called == (source == "probe")
    # the second sample does not measure what the first one has shown to be other layers, and the third does
    # not observe it
    for whole, part in zip(*(records(tmp_path / name)[:3] for name in ("all", "some")), strict=True):
        assert part.coverage == {"seen": 1, "measured": 1, "left_out": {}}
        assert part.keys() == whole.keys()
        for key in part:
            assert np.isnan(part[key][0]).all(), key
            if key == "weight_similarity":  # there is no other layer to compare with
                continue
            # other layers are decomposed together, which rounds otherwise
            np.testing.assert_allclose(part[key][1], whole[key][1], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("ids", "build", "first"),
    [
        ([1], Classifier, True),
        (None, Causal, True),
        ([59], Causal, False),
        ([], Causal, None),
        (None, Classifier, None),
    ],
)
def test_special_tokens_are_the_given_or_those_of_the_config(
    ids: Any, build: Callable[..., Lit], first: bool | None, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    module, monitor = build(), GeometryMonitor(1, metrics="pattern", special_token_ids=ids)
    fit(tmp_path, module, monitor, steps=2)
    said = [str(w.message) for w in recwarn if "special_mass is absent" in str(w.message)]
    assert len(said) == (first is None)
    record = records(tmp_path)[0]
    assert ("special_mass" in record) == (first is not None)
    if first:  # the first token is 1, and the rest is other than what is given
        other = [2] if build is Causal and ids is None else []  # GPT-2's config also names the end
        ids = torch.stack([item["input_ids"] for item in sequences()])[:16]
        assert not np.isin(ids[:, 1:], [1]).any()
        if not other:
            np.testing.assert_allclose(record["special_mass"], record["first_mass"], rtol=1e-5)


def test_drift_is_against_the_baseline_that_was_given(tmp_path: Path) -> None:
    data = {"validation": loader(8, seed=3), "steps": 1}
    fit(tmp_path / "old", Classifier(seed=0), GeometryMonitor(9, rank=3, **QUIET), **data)
    baseline = tmp_path / "old" / "lightning_geo" / "version_0"
    for seed in (0, 1):
        monitor = GeometryMonitor(9, rank=3, baseline=baseline, **QUIET)
        fit(tmp_path / str(seed), Classifier(seed=seed), monitor, **data)
    same, other = (records(tmp_path / name)[0] for name in ("0", "1"))
    np.testing.assert_allclose(same["drift"], 0, atol=1e-5)
    old = load_history(baseline).record(0)
    for role in ("query", "key", "value", "output"):
        u, v = (r.matrices["bert.encoder"][f"basis.{role}"].astype(np.float64) for r in (old, other))
        overlap = np.square(np.swapaxes(u, -1, -2) @ v).sum((-1, -2)) / 3
        np.testing.assert_allclose(other[f"drift.{role}"], np.sqrt(1 - overlap), atol=5e-6)
    wrong = GeometryMonitor(9, rank=3, baseline=baseline)
    module = Classifier(layers=3)
    with pytest.raises(ValueError, match=r"`baseline` to be a run of the same model and `rank` but '.*old"):
        fit(tmp_path / "wrong", module, wrong, **data)
    assert module.losses == []
