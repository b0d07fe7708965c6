"""``measure`` against the float64 reference: every family, implementation, padding and metric."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from families.expected import METRICS
from families.models import FAMILIES
from families.reference import layers_of
from lightning_geo import measure
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.storage.record import GeometryRecord

#: Absolute tolerance, and relative: ten times what was seen, a tenth of what is promised for entropies.
ATOL, RTOL = 1e-5, 2e-5
#: Singular values below a thousandth of the largest are rounding in a float32 second moment.
ATOL_EFFECTIVE_RANK = 2e-2
CASES = [
    (name, implementation, padding)
    for name, family in FAMILIES.items()
    for implementation in family.implementations
    for padding in family.paddings
]
#: These compare samples, or need token ids that no config here gives.
NOT_IN_ONE_SAMPLE = ("drift", "velocity", "special_mass")


@functools.cache
def record_of(name: str, implementation: str, padding: str) -> GeometryRecord:
    family = FAMILIES[name]
    return measure(family.build(implementation), family.batch(padding))


@functools.cache
def expected_of(name: str, padding: str, metrics: str) -> dict[str, dict[str, NDArray[np.float64]]]:
    """``stack -> metric -> [layer, head] or [layer]``, ragged heads padded with NaN."""
    result = {}
    for stack, layers in layers_of(name, padding).items():
        values = [METRICS[metrics](layer) for layer in layers]
        heads = max(layer.probabilities.shape[1] for layer in layers)
        result[stack] = {
            metric: np.stack([_padded(value[metric], heads) for value in values]) for metric in values[0]
        }
    return result


def _padded(value: NDArray[np.float64], heads: int) -> NDArray[np.float64]:
    value = np.asarray(value)
    return np.pad(value, [(0, heads - len(value))], constant_values=np.nan) if value.ndim else value


@pytest.mark.parametrize(("name", "implementation", "padding"), CASES)
def test_stacks_and_layers(name: str, implementation: str, padding: str) -> None:
    record = record_of(name, implementation, padding)
    assert set(record.stacks) == {stack.name for stack in FAMILIES[name].stacks}
    for stack in FAMILIES[name].stacks:
        heads = max(layer.probabilities.shape[1] for layer in layers_of(name, padding)[stack.name])
        entropy = record.stacks[stack.name]["entropy"]
        assert entropy.shape == (stack.layers, heads)
        assert entropy.dtype == np.float32


@pytest.mark.parametrize("metrics", METRICS)
@pytest.mark.parametrize(("name", "implementation", "padding"), CASES)
def test_metrics(name: str, implementation: str, padding: str, metrics: str) -> None:
    record = record_of(name, implementation, padding)
    for stack, expected in expected_of(name, padding, metrics).items():
        for metric, values in expected.items():
            assert metric in record.stacks[stack], f"{stack}/{metric} is missing"
            np.testing.assert_allclose(
                record.stacks[stack][metric],
                values,
                rtol=RTOL,
                atol=ATOL_EFFECTIVE_RANK if metric.startswith("effective_rank") else ATOL,
                err_msg=f"{stack}/{metric}",
            )


@pytest.mark.parametrize("metrics", METRICS)
def test_the_reference_knows_every_metric(metrics: str) -> None:
    """A metric that is added to the catalog must be added here."""
    known = set(expected_of("gpt_oss", "none", metrics)["layers"])
    catalog = {
        stored
        for spec in CATALOG.values()
        if spec.family == metrics and spec.name not in NOT_IN_ONE_SAMPLE
        for stored in spec.stored_names
    }
    assert known == catalog


@pytest.mark.parametrize(("name", "implementation", "padding"), CASES)
def test_nothing_is_recorded_that_the_reference_does_not_define(
    name: str, implementation: str, padding: str
) -> None:
    """No pattern for cross-attention, no sink mass without sinks."""
    record = record_of(name, implementation, padding)
    for stack, layers in layers_of(name, padding).items():
        for spec in CATALOG.values():
            of_block = spec.name == "update_ratio"
            if (layers[0].cross and (spec.self_attention or of_block)) or (
                spec.name == "learned_sink_mass" and name != "gpt_oss"
            ):
                assert np.isnan(record.stacks[stack].get(spec.name, np.nan)).all(), f"{stack}/{spec.name}"
