"""Metrics from outside in a sample: as exact as built-in ones, and no danger to anything else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from families.models import FAMILIES
from lightning_geo import Collector, GeometryRecord, measure
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.foreign import FOREIGN
from lightning_geo.metrics.registry import metric_function, reads_of, roles_of
from lightning_geo.metrics.selection import compares_samples
from lightning_geo.utils.errors import MetricError
from support.registry import nothing_registered, register

NOT_OPEN = {"basis", "drawn", "future", "margins", "padding", "head_gradient"}
#: Built-in metrics that read what is open to others.
OPEN = [
    spec
    for spec in CATALOG.values()
    if not compares_samples(spec.name)
    and not any(quantity.partition(".")[0] in NOT_OPEN for quantity in reads_of(spec.stored_names[0]))
]


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    with nothing_registered():
        yield


class Shy:
    """The function of a built-in metric, which spoils what it is given once it has looked at it."""

    def __init__(self, name: str) -> None:
        self._function = metric_function(name)

    def __call__(self, *arguments: Any) -> Tensor:
        result = self._function(*arguments).clone()
        for argument in arguments:
            for tensor in tensors_of(argument):
                tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.zero_()
        torch.rand(3), random.random(), np.random.random()
        return result


def tensors_of(argument: Any) -> list[Tensor]:
    if isinstance(argument, Tensor):
        return [argument]
    held = getattr(argument, "roles", None) or getattr(argument, "__dict__", {})
    return [tensor for value in held.values() for tensor in tensors_of(value)]


def clone(spec: Any) -> str:
    """Register the same metric under a name of its own."""
    name = f"my_{spec.name.replace('.', '_')}"
    stored = spec.stored_names[0]
    fields = {
        f: getattr(spec, f)
        for f in ("axes", "parts", "summary", "self_attention", "unit", "formula", "meaning", "source")
    }
    function = Shy(stored)
    function.__qualname__ = name  # type: ignore[attr-defined]
    roles = () if spec.parts else roles_of(stored)
    register(name, function, reads_of(stored), roles=roles, **fields)
    return name


@pytest.mark.parametrize("name", ["bert", "t5", "swin", "llama"])
def test_a_metric_from_outside_is_as_the_built_in_one_and_touches_nothing(name: str) -> None:
    family = FAMILIES[name]
    model = family.build(family.implementations[0])
    batch = family.batch(family.paddings[-1])
    families = [*dict.fromkeys(spec.family for spec in OPEN)]
    alone = measure(model, batch, metrics=families)
    clones = {clone(spec): spec for spec in OPEN}
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    both = measure(model, batch, metrics=[*families, *clones])
    for stack, arrays in alone.stacks.items():
        for metric, values in arrays.items():
            np.testing.assert_array_equal(both.stacks[stack][metric], values)
        for mine, spec in clones.items():
            for stored, theirs in zip(FOREIGN[mine].spec.stored_names, spec.stored_names, strict=True):
                expected = arrays.get(theirs)
                if expected is None or np.isnan(expected).all():
                    assert stored not in both.stacks[stack]
                else:
                    np.testing.assert_allclose(
                        both.stacks[stack][stored], expected, 1e-5, 1e-6, err_msg=stored
                    )
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # type: ignore[index]


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def measured(*metrics: str) -> GeometryRecord:
    return measure(
        encoder(), torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)), metrics=metrics
    )


def raises(entropy: Tensor) -> Tensor:
    raise ArithmeticError("no")


FAULTS = {
    "raises": (raises, "ArithmeticError: no"),
    "shape": (lambda entropy: entropy.mean(-1), r"shape \[2, 3, 2, 5\] but got \[2, 3, 2\]"),
    "type": (lambda entropy: entropy > 1, "floating point but got torch.bool"),
    "nothing": (lambda entropy: None, "a tensor but got NoneType"),
    "arguments": (lambda: 0, "takes 0 positional arguments"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_function_at_fault_is_named(fault: str) -> None:
    function, message = FAULTS[fault]
    register("faulty", function)
    with pytest.raises(MetricError, match=f"'faulty' failed: .*{message}"):
        measured("entropy", "faulty")


# -- collectors


class ValueLengths(Collector):
    """The lengths of values, which no built-in quantity tells."""

    offers = frozenset({"value.length", "value.real"})

    def attention(self, layer: Any, key: Any, call: Any) -> None:
        if call.value is None:
            return
        batch, heads, tokens, _ = call.value.shape
        real = torch.ones(batch, tokens, dtype=torch.bool) if call.key_mask is None else call.key_mask
        lengths = call.value.float().norm(dim=-1).repeat_interleave(layer.heads // heads, 1)
        torch.rand(1)
        self.add_by_sequence(layer, {"value.length": lengths, "value.real": real}, (batch, layer.heads))


def value_norm(lengths: Tensor, real: Tensor) -> Tensor:
    return lengths.masked_fill(~real[:, None], 0).sum(-1) / real.sum(-1)[:, None]


@pytest.mark.parametrize("name", ["bert", "llama", "swin", "t5"])
def test_a_collector_measures_what_no_built_in_one_does(name: str) -> None:
    register("value_norm", value_norm, ("value.length", "value.real"), collector=ValueLengths)
    # beside it a built-in quantity of the same kind, computed by the same means from keys
    family = FAMILIES[name]
    model, batch = family.build(family.implementations[0]), family.batch(family.paddings[-1])
    seen: dict[str, list[Tensor]] = {}
    original = ValueLengths.attention

    class Watching(ValueLengths):
        def attention(self, layer: Any, key: Any, call: Any) -> None:
            real = (
                torch.ones(call.value.shape[::2], dtype=torch.bool)
                if call.key_mask is None
                else call.key_mask
            )
            x = call.value.double()
            means = [x[i][:, real[i]].square().sum(-1).sqrt().mean(-1) for i in range(len(x))]
            mean = torch.stack(means).nanmean(0).repeat_interleave(layer.heads // x.shape[1])
            seen.setdefault(f"{key.module}{key.cross}{key.part}{key.repeat}", []).append(mean)
            original(self, layer, key, call)

    FOREIGN["value_norm"] = replace(FOREIGN["value_norm"], collector=Watching)
    state = torch.get_rng_state()
    record = measure(model, batch, metrics=["value_norm", "entropy"])
    assert torch.equal(torch.get_rng_state(), state)
    found = sorted(
        float(row[np.isfinite(row)].sum())
        for arrays in record.stacks.values()
        for row in arrays["value_norm"]
        if np.isfinite(row).any()
    )
    np.testing.assert_allclose(found, sorted(float(rows[0].sum()) for rows in seen.values()), rtol=1e-5)
    for arrays in record.stacks.values():
        assert arrays["value_norm"].shape == arrays["entropy"].shape
        np.testing.assert_array_equal(np.isfinite(arrays["value_norm"]), np.isfinite(arrays["entropy"]))


def test_a_collector_of_layers_derives_from_blocks() -> None:
    class Widths(Collector):
        offers = frozenset({"largest"})

        def block(self, layer: Any, block: Any) -> None:
            self.add_by_sequence(layer, {"largest": block.output.abs().amax((1, 2))}, (len(block.output),))

    register("largest", lambda x: x, ("largest",), collector=Widths, axes=("layer",))
    model, x = encoder(), torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    model.eval()
    outputs: list[Tensor] = []
    for layer in model.layers:  # type: ignore[union-attr]
        layer.register_forward_hook(lambda module, _, output: outputs.append(output))
    with torch.no_grad():
        model(x)
    expected = [float(output.abs().amax((1, 2)).mean()) for output in outputs[:2]]
    np.testing.assert_allclose(measured("largest")["largest"], expected, rtol=1e-5)


class Failing(ValueLengths):
    """Fails in the second layer, as it is."""

    def attention(self, layer: Any, key: Any, call: Any) -> None:
        super().attention(layer, key, call)
        if "1" in key.module:
            raise ArithmeticError("no")


class Taking(ValueLengths):
    """Adds a metric that is not its own."""

    def derive(self, stack: Any) -> None:
        stack.add("entropy", [0], torch.zeros(1, 2))


class Misshapen(ValueLengths):
    def derive(self, stack: Any) -> None:
        stack.add("value_norm", [0], torch.zeros(1, 3))


class Writing(ValueLengths):
    """Spoils what the model goes on with."""

    def attention(self, layer: Any, key: Any, call: Any) -> None:
        super().attention(layer, key, call)
        call.value.mul_(2)


class Unmade(ValueLengths):
    def __init__(self, metrics: tuple[str, ...]) -> None:
        raise ArithmeticError("no")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Failing, "ArithmeticError: no"),
        (Taking, r"to add \['value_norm'\] but got \['entropy'\]"),
        (Misshapen, "'value_norm'"),
        (Unmade, "ArithmeticError: no"),
        (Writing, "Writing.attention wrote to tensors of the model"),
    ],
)
def test_a_collector_at_fault_is_named(kind: type[Collector], message: str) -> None:
    register("value_norm", value_norm, ("value.length", "value.real"), collector=kind)
    with pytest.raises(MetricError, match=f"'value_norm' failed: .*{message}"):
        measured("entropy", "value_norm")
