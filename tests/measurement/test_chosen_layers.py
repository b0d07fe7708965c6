"""``layers=``: what is named has the values of the whole record, and what is not is not measured."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from families.models import FAMILIES
from lightning_geo import GeometryRecord, measure
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import select
from lightning_geo.observe import Tap

#: Lists of layers, stages with lists in them, two towers, cross-attention, one layer that runs often.
NAMES = ("bert", "llama", "t5", "bart", "swin", "clip", "albert")
METRICS = sorted({spec.family for spec in CATALOG.values()})


def spread(output: Any, *_: Any, **__: Any) -> Tensor:
    """A loss that every model has."""
    first: Tensor = next(iter(output.values()))
    if "image_embeds" in output:  # what is first compares sequences
        first = output["image_embeds"] + 2 * output["text_embeds"]
    return first.pow(3).mean() + first.square().sum()


def measured(name: str, layers: Any) -> GeometryRecord:
    family = FAMILIES[name]
    batch = family.batch(family.paddings[-1])
    return measure(family.build("sdpa"), batch, metrics=METRICS, layers=layers, loss_fn=spread)


whole = functools.cache(functools.partial(measured, layers=None))


@pytest.mark.slow
@settings(max_examples=20)
@given(st.sampled_from(NAMES), st.data())
def test_values_are_those_of_the_whole_record(name: str, data: st.DataObject) -> None:
    full = whole(name)
    paths = {stack: about["modules"] for stack, about in full.model["stacks"].items()}
    every = sorted({path for modules in paths.values() for path in modules})
    numbers = st.sets(st.integers(0, max(map(len, paths.values())) - 1), min_size=1).map(sorted)
    path = data.draw(st.sampled_from(every))
    places = st.integers(0, path.count(".")).map(lambda start: ".".join(path.split(".")[start:]))
    patterns = places.map(lambda end: rf"\b{re.escape(end)}$")  # found anywhere in a path
    layers = data.draw(numbers | st.just(f"^{re.escape(path)}$") | patterns)
    part = measured(name, layers)
    wanted = {
        stack: [bool(re.search(layers, path)) if isinstance(layers, str) else i in layers
                for i, path in enumerate(modules)]
        for stack, modules in paths.items()
    }  # fmt: skip
    assert part.stacks.keys() == {stack for stack, flags in wanted.items() if any(flags)}
    for stack, arrays in part.stacks.items():
        flags = np.array(wanted[stack])
        for metric, values in full.stacks[stack].items():
            if metric == "weight_similarity":  # compares the layers that are chosen
                continue
            got = np.full_like(values, np.nan)
            if metric in arrays:  # as many columns as the widest layer that is reported
                got[tuple(map(slice, arrays[metric].shape))] = arrays[metric]
            expected = values.copy()
            expected[~flags] = np.nan
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5, err_msg=f"{stack} {metric}")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Looped(nn.Module):
    """Runs each of its layers twice in a row: layer 1 is the second run of item 0, and item 1 is layer 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(2))
        self.runs = 2

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            for _ in range(self.runs):
                x = layer(x)
        return x


def test_layers_that_are_numbered_otherwise_than_their_items_are_measured_all_the_same() -> None:
    torch.manual_seed(0)
    model, x = Looped(), torch.randn(2, 6, 8)
    full, part = (measure(model, x, metrics="entropy", layers=layers) for layers in (None, [2]))
    np.testing.assert_array_equal(part["entropy"][2], full["entropy"][2])
    assert np.isnan(part["entropy"][[0, 1, 3]]).all()


def test_a_layer_that_got_another_number_is_said_and_measured_from_then_on() -> None:
    model, x = Looped(), torch.randn(2, 6, 8)
    tap, known = Tap(model), dict[str, Any]()

    def sample(runs: int) -> list[int]:
        model.runs = runs
        measurement = Measurement({"": tap}, select("metric:entropy"), [1], known=known)
        with torch.no_grad(), measurement.observe():
            model(x)
        (arrays,) = measurement.compute().stacks.values()
        return np.flatnonzero(np.isfinite(arrays["entropy"]).all(-1)).tolist()  # type: ignore[no-any-return]

    assert sample(2) == [1]
    with pytest.raises(LookupError, match=r"numbers than expected: layers\.1\. The next sample measures"):
        sample(1)
    assert [sample(1), sample(2), sample(1)] == [[1], [1], [1]]
