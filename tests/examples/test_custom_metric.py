"""The example with a metric of its own: whoever reads its run needs nothing but the run."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dashboard.providers import ask, client_of, eventually, provider_of
from lightning_geo import load_history
from lightning_geo.cli.main import main
from lightning_geo.metrics.foreign import FOREIGN
from support.registry import nothing_registered

pytestmark = pytest.mark.slow

MEANING = "A rise: fewer tokens receive the attention; 0: all receive the same."


def test_the_metric_is_found_wherever_runs_are_read(run, tmp_path, capsys):
    for seed in (0, 1):
        printed = run(
            "custom_metric.py", "--max-steps", 2, "--every-n-steps", 1, "--length", 16, "--seed", seed
        )
        assert "key_gini" in printed
    assert "key_gini" not in FOREIGN  # this process never imports the example
    a, b = (str(tmp_path / "custom_metric" / f"version_{number}") for number in (0, 1))
    history = load_history(a)
    spec = history.specs["key_gini"]
    assert (spec.unit, spec.range, spec.meaning) == ("1", (0.0, 1.0), MEANING)
    assert history["key_gini"].shape == history["entropy"].shape
    assert 0.0 < history["key_gini"].min() <= history["key_gini"].max() < 1.0
    for command in (["show", a], ["compare", a, b], ["compare", a, b, "--metric", "key_gini"]):
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert "key_gini (0 to 1): " in printed
        assert MEANING in printed
    page = tmp_path / "report.html"
    assert main(["report", a, b, "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count(MEANING) >= 2
    assert "<td>0 to 1</td>" in text
    client = client_of(provider_of("slow", tmp_path))
    metrics = eventually(lambda: {m["name"]: m for m in ask(client, "index").json["metrics"]})
    told = metrics["key_gini"]
    assert (told["unit"], told["range"], told["meaning"]) == ("1", [0, 1], MEANING)
    assert told["headline"]


@pytest.fixture(scope="module")
def gini():
    """The example's function."""
    path = Path(__file__).parents[2] / "examples" / "custom_metric.py"
    with nothing_registered():
        return runpy.run_path(str(path), run_name="custom_metric")["key_gini"]


@given(seed=st.integers(0, 2**32 - 1), keys=st.integers(1, 6))
def test_it_is_the_gini_coefficient(gini, seed, keys):
    rng = np.random.default_rng(seed)
    received, mask = rng.gamma(0.5, size=(2, 3, 2, keys)), rng.random((2, 3, keys)) < 0.7
    mask[..., 0] = True
    found = gini(torch.tensor(received), torch.tensor(mask)).numpy()
    whole = gini(torch.tensor(received), None).numpy()
    for cell in np.ndindex(2, 3, 2):
        for value, x in ((found, received[cell][mask[cell[:2]]]), (whole, received[cell])):
            # half the mean difference of two, in units of the mean
            expected = np.abs(x[:, None] - x).mean() / (2 * x.mean())
            assert value[cell] == pytest.approx(expected, abs=1e-12)
