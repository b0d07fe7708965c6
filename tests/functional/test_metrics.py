"""Every public function of ``functional`` and every metric of the catalogue, through one tester.

That sums over batches and ranks add up to those of the whole is checked for all metrics together, where the
sums are kept: ``measurement/test_sample_statistics.py``.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from functional import tester
from functional.row import HALF, Draw
from functional.table import SERVED, TABLE
from lightning_geo import functional as F
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.registry import metric_function

SEEDS = st.integers(0, 2**32 - 1)
RANGES = {name: spec.range for name, spec in CATALOG.items()}
HAS_ITEMS = [name for name, row in TABLE.items() if row.axes != 0]


def test_everything_public_and_every_metric_is_in_the_table():
    no_tensors = {"METRIC_FUNCTIONS", "AttentionStatistics", "HeadMoments", "HeadReads", "HeadWeights",
                  "StreamStatistics", "computes", "metric_function"}  # fmt: skip
    # what these return becomes metrics, each with a row, and is compared in whole in `tests/kernels`
    statistics = {"attention_statistics", "head_moments", "stream_statistics"}
    assert {*F.__all__} - no_tensors - statistics <= {*TABLE}
    assert {*CATALOG} <= {*TABLE} | {*SERVED}
    assert all(metric_function(metric) is getattr(F, name) for metric, name in SERVED.items())


@pytest.mark.parametrize("name", TABLE)
def test_the_definition(name):
    row = TABLE[name]

    @settings(max_examples=row.examples * settings().max_examples // 60)
    @given(
        seed=SEEDS,
        lead=st.lists(st.integers(1, 3), max_size=2),
        dtype=st.sampled_from(row.dtypes),
        keep=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
        poison=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
    )
    def check(seed, lead, dtype, keep, poison):
        draw = Draw.of(seed, lead=row.lead(*lead), dtype=dtype, keep=keep, poison=poison)
        tester.check_definition(row, draw, within=RANGES.get(name.partition(",")[0], (None, None)))

    check()


@pytest.mark.parametrize("name", HAS_ITEMS)
def test_sequences_are_apart(name):
    tester.check_sequences_apart(TABLE[name])


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.masks])
def test_what_is_masked_has_no_influence(name):
    tester.check_masked(TABLE[name])


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.autocast])
def test_autocast_changes_nothing(name):
    tester.check_autocast(TABLE[name])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", TABLE)
def test_half_precision_is_upcast_first(name, dtype):
    tester.check_half(TABLE[name], dtype)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.gradient is not None])
def test_the_gradient(name):
    tester.check_gradient(TABLE[name])


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.undefined])
def test_what_is_not_defined_is_nan(name):
    tester.check_undefined(TABLE[name])


@pytest.mark.parametrize("name", HAS_ITEMS)
def test_what_is_broken_stays_visible(name):
    tester.check_broken(TABLE[name])


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, row in TABLE.items() for what in row.unchanged]
)
def test_what_must_not_matter_does_not(name, what):
    @given(SEEDS)
    def check(seed):
        tester.check_unchanged(TABLE[name], what, seed)

    check()


# -- the tester sees what it looks for


def off_by_rounding(x, mask):
    return F.token_norm(x, mask) * (1 + 1e-4)


def writes(x, mask):
    result = F.token_norm(x, mask)
    x.add_(1)
    return result


def ignores_the_mask(x, mask):
    return F.token_norm(x)


def looks_at_other_sequences(x, mask):
    return F.token_norm(x, mask) + 1e-6 * F.token_norm(x, mask).nan_to_num().sum()


def keeps_half(x, mask):
    return F.token_norm(x, mask).to(x.dtype)


def sums_in_half(x, mask):
    return F.masked_mean(x.square().sum(-1).sqrt(), mask)


def is_zero_where_undefined(x, mask):
    return F.token_norm(x, mask).nan_to_num()


def has_no_gradient_at_zero(x, mask):
    return F.masked_mean(x.square().sum(-1).sqrt(), mask)


def depends_on_order(x, mask):
    return F.token_norm(x * torch.arange(x.shape[-2])[:, None], mask)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (off_by_rounding, lambda row: tester.check_definition(row, Draw.of(0, lead=(2,)))),
        (writes, lambda row: tester.check_definition(row, Draw.of(0, lead=(2,)))),
        (keeps_half, lambda row: tester.check_definition(row, Draw.of(0, lead=(2,), dtype=torch.float16))),
        (ignores_the_mask, tester.check_masked),
        (looks_at_other_sequences, tester.check_sequences_apart),
        (sums_in_half, lambda row: tester.check_half(row, torch.bfloat16)),
        (is_zero_where_undefined, tester.check_undefined),
        (is_zero_where_undefined, tester.check_broken),
        (has_no_gradient_at_zero, tester.check_gradient),
        (depends_on_order, lambda row: tester.check_unchanged(row, "order", 0)),
    ],
)
def test_planted_faults_are_found(fault, check):
    row = TABLE["token_norm"]
    check(row)
    with pytest.raises(AssertionError):
        check(dataclasses.replace(row, function=fault))
