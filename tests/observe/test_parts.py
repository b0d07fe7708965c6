"""Which layer, run and part the attentions of real forwards are, against numbers computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_geo import GeometryRecord, measure

HEADS, WIDTH = 2, 8
#: Queries and keys by attention, outside of the model: what is inside is as it was after a measurement.
GIVEN: WeakKeyDictionary[nn.Module, list[tuple[Tensor, Tensor]]] = WeakKeyDictionary()


def split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def entropy(q: Tensor, k: Tensor) -> np.ndarray:
    """[head] of the softmax of all pairs."""
    scores = split(q).double() @ split(k).double().mT * (WIDTH // HEADS) ** -0.5
    p = scores.softmax(-1)
    return torch.special.entr(p).sum(-1).mean((0, 2)).detach().numpy()


class Attention(nn.Module):
    """Attends ``times`` times in one run, each with a sharper temperature; `GIVEN` keeps its inputs."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        GIVEN[self] = []

    def expected(self, number: int = 0) -> np.ndarray:
        return entropy(*GIVEN[self][number])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for time in range(self.times):
            q, k = self.query(x) * (1 + time), self.key(x)
            GIVEN[self].append((q, k))
            y = y + F.scaled_dot_product_attention(split(q), split(k), split(x)).transpose(1, 2).flatten(2)
        return y


class Layer(nn.Module):
    """Calls its attention ``calls`` times in one run."""

    def __init__(self, calls: int = 1, times: int = 1) -> None:
        super().__init__()
        self.calls, self.attn = calls, Attention(times)

    def forward(self, x: Tensor) -> Tensor:
        for call in range(self.calls):
            x = self.attn(x * (1 + call))
        return x


class Model(nn.Module):
    """Runs its layers in the given order."""

    def __init__(self, layers: list[Layer], order: list[int]) -> None:
        super().__init__()
        self.layers, self.order = nn.ModuleList(layers), order

    def forward(self, x: Tensor) -> Tensor:
        for index in self.order:
            x = self.layers[index](x)
        return x


def measured(model: nn.Module, **options: object) -> GeometryRecord:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return measure(model, torch.randn(3, 6, WIDTH), metrics=["entropy", "stream"], **options)  # type: ignore[arg-type]


MANY = {"in one run of the module": lambda: Layer(times=2), "in two runs of it": lambda: Layer(calls=2)}


@pytest.mark.parametrize("many", MANY.values(), ids=MANY)
def test_several_attentions_of_a_module_are_parts_of_its_layer(many: Callable[[], Layer]) -> None:
    model = Model([Layer(), many(), Layer()], [0, 1, 2])
    record = measured(model)
    assert {s: a["entropy"].shape for s, a in record.stacks.items()} == {
        "layers": (3, HEADS), "layers.part2": (3, HEADS)
    }  # fmt: skip
    first = [layer.attn.expected() for layer in model.layers]
    np.testing.assert_allclose(record["entropy"], first, atol=1e-5)
    second = record["layers.part2/entropy"]
    np.testing.assert_allclose(second[1], model.layers[1].attn.expected(1), atol=1e-5)
    assert np.isnan(second[[0, 2]]).all()
    about = record.model["stacks"]["layers.part2"]
    assert about == {"modules": ["layers.0", "layers.1.attn", "layers.2"], "heads": [0, HEADS, 0]}


def test_layers_that_all_run_again_are_numbered_by_call_order_and_parts_with_them() -> None:
    model = Model([Layer(times=2)], [0, 0, 0])
    record = measured(model)
    attn = model.layers[0].attn
    np.testing.assert_allclose(record["entropy"], [attn.expected(i) for i in (0, 2, 4)], atol=1e-5)
    np.testing.assert_allclose(
        record["layers.part2/entropy"], [attn.expected(i) for i in (1, 3, 5)], atol=1e-5
    )
    assert np.isfinite(record["update_ratio"]).all()


def test_a_layer_that_runs_again_shifts_no_other() -> None:
    model = Model([Layer(), Layer(), Layer()], [0, 1, 1, 2])
    record = measured(model)
    np.testing.assert_allclose(
        record["entropy"], [layer.attn.expected() for layer in model.layers], atol=1e-5
    )
    np.testing.assert_allclose(record["layers.run2/entropy"][1], model.layers[1].attn.expected(1), atol=1e-5)


class Stage(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks, self.pool = nn.ModuleList([Layer() for _ in range(blocks)]), Attention()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.pool(x)


def test_the_attention_of_a_stage_beside_its_blocks_has_a_row_and_a_stream_of_its_own() -> None:
    model = nn.Sequential(Stage(2), Stage(1))
    record = measured(model)
    attention = [m for m in model.modules() if isinstance(m, Attention)]
    np.testing.assert_allclose(
        record["entropy"], [attention[i].expected() for i in range(len(attention))], atol=1e-5
    )
    assert record.model["stacks"]["model"]["modules"] == [
        "0.blocks.0.attn", "0.blocks.1.attn", "0.pool", "1.blocks.0.attn", "1.pool"
    ]  # fmt: skip
    assert np.isfinite(record["update_ratio"]).all()


def test_a_model_that_is_itself_an_attention_is_named_by_its_class() -> None:
    record = measured(Attention())
    assert record.model["stacks"]["model"]["modules"] == ["Attention"]


def test_a_shared_attention_outside_of_lists_is_numbered_by_call_order() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Attention()

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(self.attn(x))  # type: ignore[no-any-return]

    model = Shared()
    np.testing.assert_allclose(
        measured(model)["entropy"], [model.attn.expected(i) for i in range(2)], atol=1e-5
    )


def test_weights_of_a_part_are_those_that_it_uses() -> None:
    class Adapter(Attention):  # IP-Adapter: the same queries on keys of another projection
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            q = split(self.query(x))
            first = F.scaled_dot_product_attention(q, split(self.key(x)), split(x))
            second = F.scaled_dot_product_attention(q, split(self.other(x)), split(x))
            return (first + second).transpose(1, 2).flatten(2)

    layer, inputs = Layer(), torch.randn(3, 6, WIDTH)
    layer.attn = Adapter()
    record = measure(Model([layer], [0]), inputs, metrics=["symmetry"])
    with torch.no_grad():
        layer.attn.key.weight.copy_(layer.attn.other.weight)
    same = measure(Model([layer], [0]), inputs, metrics=["symmetry"])
    assert not np.allclose(record["symmetry"], record["layers.part2/symmetry"], atol=1e-3)
    np.testing.assert_allclose(same["symmetry"], record["layers.part2/symmetry"], atol=1e-5)
    np.testing.assert_allclose(same["layers.part2/symmetry"], same["symmetry"], atol=1e-5)
