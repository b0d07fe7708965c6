"""A new built-in metric from existing sums is one function, one catalogue entry and one row: done here.

tests/README.md says so under *Adding a metric*.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from functional import definitions, test_metrics, tester
from functional.row import HALF, Draw
from functional.rows.spectra import of_spectrum
from functional.table import TABLE
from lightning_geo import functional as F
from lightning_geo import load_history, measure
from lightning_geo.cli.main import main
from lightning_geo.functional import METRIC_FUNCTIONS, computes
from lightning_geo.metrics import registry
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.document import tables
from lightning_geo.metrics.families.entry import HEAD, entry
from lightning_geo.storage.record_file import RecordFile


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (CATALOG, METRIC_FUNCTIONS, registry._READS, registry._ROLES, TABLE):
        monkeypatch.setitem(table, "rest_share", None)  # taken away, and all else restored, afterwards
        del table["rest_share"]  # type: ignore[attr-defined]


def test_a_new_metric_is_one_function_one_entry_and_one_row(tmp_path, capsys):
    # one entry
    CATALOG["rest_share"] = entry(
        "rest_share", "subspace", HEAD, "1", "1 − λ₁ / Σλ", "explained variance, PCA",
        title="Rest of the variance", question="How much lies beside the strongest direction?",
        higher="other directions count.", lower="one direction dominates.", usual="0.5 to 0.9",
        worry="Near 0.",
        parts=("query", "output"), range=(0.0, 1.0), headline=("rest_share.query",),
    )  # fmt: skip

    # one function
    @computes("rest_share", reads=("eigenvalues",))
    def rest_share(eigenvalues: Tensor) -> Tensor:
        return 1 - F.top_share(eigenvalues)

    # without its row, or with a wrong one, the tests fail
    with pytest.raises(AssertionError):
        test_metrics.test_everything_public_and_every_metric_is_in_the_table()
    wrong = of_spectrum(rest_share, definitions.stable_rank)
    with pytest.raises(AssertionError):
        tester.check_definition(wrong, Draw.of(0, lead=(2,)))
    # one row
    row = TABLE["rest_share"] = of_spectrum(rest_share, lambda x: 1 - x.max() / x.sum())
    test_metrics.test_everything_public_and_every_metric_is_in_the_table()
    for seed in range(5):
        tester.check_definition(row, Draw.of(seed, lead=(2,)), within=CATALOG["rest_share"].range)
        tester.check_unchanged(row, "order and scale", seed)
    for check in (tester.check_sequences_apart, tester.check_undefined, tester.check_broken):
        check(row)
    for dtype in HALF:
        tester.check_half(row, dtype)

    # and it is measured, stored, read, shown and documented
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    record = measure(model, torch.randn(3, 5, 16), metrics="subspace")
    for role in ("query", "output"):
        found = record[f"rest_share.{role}"]
        np.testing.assert_allclose(found, 1 - record[f"top_share.{role}"], rtol=1e-5)
    sink = RecordFile(tmp_path, "geometry")
    for step in (0, 10):
        sink.write(dataclasses.replace(record, step=step))
    sink.close()
    assert load_history(tmp_path)["rest_share"].shape == (2, 2, 2, 2)
    assert main(["show", str(tmp_path)]) == 0
    assert "rest_share.output" in capsys.readouterr().out
    assert "| `rest_share.{query,output}` |" in tables()
