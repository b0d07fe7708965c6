"""``measure`` against the float64 reference: every family, implementation, padding and metric."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray

from families.expected import METRICS, smallest_singular_value
from families.models import FAMILIES
from families.reference import Layer, layers_of
from lightning_geo import measure
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.storage.record import GeometryRecord
from support.gathered import gathered

#: Absolute tolerance, and relative: ten times what was seen, a tenth of what is promised for entropies.
ATOL, RTOL = 1e-5, 2e-5
#: A second moment in float32 blurs eigenvalues by eps times the largest, so singular values by half of eps
#: over their own share of the largest. Twice what was seen of effective ranks, in these units: 8e-5 where the
#: smallest share is a tenth, as of five heads in six; never more than the bound on the worst of all heads,
#: whose smallest singular value is 2e-4 of its largest.
SPECTRAL, WORST_EFFECTIVE_RANK = 60, 2e-2
CASES = [
    pytest.param(
        name, implementation, padding, marks=[pytest.mark.compiles] * (implementation == "flex_attention")
    )
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
def test_a_record_is_that_of_the_reference(name: str, implementation: str, padding: str) -> None:
    """Stacks, shapes, every metric of every family, and nothing that the reference does not define."""
    record = record_of(name, implementation, padding)
    with gathered(f"{name}, {implementation}, padding {padding}") as named:
        with named("stacks"):
            assert set(record.stacks) == {stack.name for stack in FAMILIES[name].stacks}
        for stack in FAMILIES[name].stacks:
            layers, arrays = layers_of(name, padding)[stack.name], record.stacks[stack.name]
            with named(f"{stack.name}: shape and type"):
                heads = max(layer.probabilities.shape[1] for layer in layers)
                assert arrays["entropy"].shape == (stack.layers, heads)
                assert arrays["entropy"].dtype == np.float32
            for metrics in METRICS:
                for metric, values in expected_of(name, padding, metrics)[stack.name].items():
                    with named(f"{stack.name}/{metric}"):
                        assert metric in arrays, "missing"
                        close(arrays[metric], values, metric, layers)
            for metric in undefined(name, layers):
                with named(f"{stack.name}/{metric}"):
                    assert np.isnan(arrays.get(metric, np.nan)).all(), "the reference does not define it"


def close(ours: NDArray[np.float32], theirs: NDArray[np.float64], metric: str, layers: list[Layer]) -> None:
    if not metric.startswith("effective_rank"):
        np.testing.assert_allclose(ours, theirs, rtol=RTOL, atol=ATOL)
        return
    role = metric.partition(".")[2]
    for index, layer in enumerate(layers):  # layers may differ in their number of heads
        smallest = smallest_singular_value(layer, role)
        heads = len(smallest)
        atol = np.minimum(ATOL + SPECTRAL * np.finfo(np.float32).eps / smallest, WORST_EFFECTIVE_RANK)
        error = np.abs(ours[index, :heads] - theirs[index, :heads])
        np.testing.assert_array_less(error, atol + RTOL * theirs[index, :heads], err_msg=f"layer {index}")
        assert np.isnan(ours[index, heads:]).all(), f"layer {index} has {heads} heads"


def undefined(name: str, layers: list[Layer]) -> list[str]:
    """No pattern and no update for cross-attention, no sink mass without sinks."""
    return [
        spec.name
        for spec in CATALOG.values()
        if (layers[0].cross and (spec.self_attention or spec.name == "update_ratio"))
        or (spec.name == "learned_sink_mass" and name != "gpt_oss")
    ]


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
