"""Histories as xarray and pandas: the same numbers under named axes."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_geo import GeometryHistory
from lightning_geo.metrics.catalog import CATALOG
from support.records import make_record


def history(**kwargs: object) -> GeometryHistory:
    return GeometryHistory([make_record(step, **kwargs) for step in (0, 50, 120)])  # type: ignore[arg-type]


def test_xarray_has_named_axes_and_units() -> None:
    ours = history()
    theirs = ours.to_xarray()
    assert set(theirs.data_vars) == set(ours.keys())
    for key in ours:
        np.testing.assert_array_equal(theirs[key].values, ours[key])
        assert theirs[key].dims == ("step", "layer", "head")[: ours[key].ndim]
    assert theirs["attention_distance"].attrs["units"] == "tokens"
    assert theirs["entropy"].attrs["meaning"] == CATALOG["entropy"].meaning
    assert theirs.attrs["model"] == "Tiny"
    chosen = theirs["entropy"].sel(step=50, layer=1, head=2)
    assert float(chosen) == ours["entropy"][1, 1, 2]
    assert theirs["epoch"].sel(step=120).item() == 1


def test_several_stacks_are_chosen_by_name() -> None:
    ours = history(stacks=["enc", "dec"], metrics=["entropy"])
    np.testing.assert_array_equal(ours.to_xarray("dec")["entropy"].values, ours["dec/entropy"])
    for wrong in (None, "other"):
        with pytest.raises(ValueError, match=rf"`stack`.*\['enc', 'dec'\] but got {wrong!r}"):
            ours.to_xarray(wrong)


def test_pandas_has_a_row_for_every_number() -> None:
    ours = history(stacks=["enc", "dec"], metrics=["entropy", "cone.output"])
    ours.stacks["enc"]["entropy"][0, 0, 0] = np.nan
    table = ours.to_pandas()
    assert list(table.columns) == ["step", "stack", "metric", "layer", "head", "value", "unit"]
    assert len(table) == 2 * 3 * (2 * 3 + 2) - 1
    one = table.query("step == 50 and stack == 'dec' and metric == 'entropy' and layer == 1 and head == 2")
    assert one["value"].item() == ours["dec/entropy"][1, 1, 2]
    assert one["unit"].item() == "nats"
    assert table[table["metric"] == "cone.output"]["head"].isna().all()
    means = table[table["metric"] == "entropy"].groupby(["stack", "step"], observed=True)["value"].mean()
    assert means["dec", 120] == pytest.approx(ours["dec/entropy"][2].mean(), rel=1e-6)
