"""How many operations a sample takes, and that it never waits for the device.

On a GPU each operation is a launch, which costs a small model more than its arithmetic.
"""

from __future__ import annotations

import collections
import os
import sys
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel

import lightning_geo
from lightning_geo import measure
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import compares_samples, select
from lightning_geo.observe import Tap
from lightning_geo.observe.evidence.mask_structure import MaskStructures

#: What a single sample measures by default.
METRICS = tuple(name for name in select() if not compares_samples(name))

#: Those that need no loss.
FAMILIES = sorted({spec.family for spec in CATALOG.values()} - {"importance"})

PACKAGE = os.path.dirname(lightning_geo.__file__)

#: Operations without a kernel: views, allocations, and scalars that are passed along as arguments.
FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "empty", "empty_like",
    "expand", "lift_fresh", "new_empty", "permute", "promote_types", "scalar_tensor", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
}  # fmt: skip

#: Operations after which the host knows a number that the device has computed.
WAITING = {"_local_scalar_dense", "_unique2", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim"}

#: Places that wait on a CPU, where it costs nothing. On a GPU none does: `by_lapack` waits for it instead.
ON_CPU = {
    ("kernels/vectors.py", "_scatter"),
    ("kernels/vectors.py", "_without_padding"),
    ("kernels/chunked.py", "add"),  # the Triton kernels take its place on a GPU
    ("kernels/visibility.py", "_search"),  # likewise
    # whether a Cholesky decomposition failed, of matrices that lie on the host
    ("functional/head_products.py", "_eigenvalues_of_product"),
    ("functional/head_products.py", "_whitened"),
}


def name_of(operation: Any) -> str:
    return operation.name().split("::")[1].split(".")[0]  # type: ignore[no-any-return]


def place() -> tuple[str, str]:
    """File and function of the package that called the running operation; of the model, nothing."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE) and not path.startswith(os.path.join(PACKAGE, "observe")):
            return os.path.relpath(path, PACKAGE), frame.f_code.co_name
        frame = frame.f_back
    return "", ""


class Operations(TorchDispatchMode):
    """Counts operations by place."""

    def __init__(self) -> None:
        super().__init__()
        self.count: collections.Counter[tuple[str, str]] = collections.Counter()
        self.waiting: collections.Counter[tuple[str, str]] = collections.Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = name_of(operation)
        if name not in FREE:
            self.count[place()] += 1
        if name in WAITING:
            self.waiting[place()] += 1
        return operation(*args, **(kwargs or {}))


def counted(layers: int, padded: bool = True, **options: Any) -> Operations:
    """The operations of a sample of 2 x 16 tokens, of which each tile kernel takes one tile."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=48, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=12,
        max_position_embeddings=32,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[0, 9:] = int(not padded)
    batch: dict[str, Tensor] = {"input_ids": torch.randint(1, 60, (2, 16)), "attention_mask": mask}
    measure(model, batch, **options)  # what is made at the first call only
    with Operations() as operations:
        measure(model, batch, **options)
    with torch.no_grad(), Operations() as models_own:
        model(**batch)
    operations.count["measurement/one_batch.py", "measure"] -= models_own.count["", ""]
    return operations


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_a_layer_takes_few_operations_and_a_sample_not_many_more(padded: bool) -> None:
    few, many = counted(4, padded), counted(8, padded)
    by_layer = {p: (many.count[p] - few.count[p]) / 4 for p in many.count}
    once = {p: few.count[p] - 4 * by_layer[p] for p in many.count}
    for title, counts in (("per layer", by_layer), ("once", once)):
        largest = sorted(counts.items(), key=lambda item: -item[1])[:10]
        print(title, round(sum(counts.values())), *(f"\n  {n:5.0f} {'/'.join(p)}" for p, n in largest))
    tile = sum(n for (path, _), n in by_layer.items() if path.startswith("kernels/"))
    assert sum(by_layer.values()) <= 120
    assert sum(by_layer.values()) - tile <= 40
    assert sum(once.values()) <= ONCE[padded]


#: Operations besides those of layers, with every default family; a mask has to be read once.
ONCE = {False: 400, True: 400}


def test_layers_that_are_not_asked_for_cost_nothing() -> None:
    config = BertConfig(
        vocab_size=60, hidden_size=48, intermediate_size=96, num_hidden_layers=24, num_attention_heads=12,
    )  # fmt: skip
    torch.manual_seed(0)
    deep = BertModel(config, add_pooling_layer=False).eval()
    shallow = BertModel(BertConfig(**{**config.to_dict(), "num_hidden_layers": 1}), add_pooling_layer=False)
    batch = {"input_ids": torch.randint(1, 60, (2, 16))}
    metrics = tuple(name for name in select(FAMILIES) if not compares_samples(name))

    def sample(model: BertModel, layers: Any, known: Any = None) -> tuple[int, Any, int]:
        with torch.no_grad():
            with Operations() as models_own:
                model(**batch)
            with Operations() as operations:
                measurement = Measurement({"": Tap(model, ())}, metrics, layers, known=known)
                with measurement.observe():
                    model(**batch)
                found = measurement.compute().stacks["encoder"]
        sums = [layer.sums for s in measurement._statistics.values() for layer in s.everything()]
        held = sum(x.nbytes for by_name in sums for x in by_name.values())
        return sum(operations.count.values()) - sum(models_own.count.values()), found, held

    one, _, least = sample(shallow.eval(), None)
    _, whole, _ = sample(deep, None)
    known: dict[str, Any] = {}
    for layers in [23], r"layer\.23\.", [23]:  # at the first sample, and at the second
        count, found, held = sample(deep, layers, known)
        assert count <= 1.3 * one
        assert held == least
        assert found.keys() == whole.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(np.isnan(values[:23]), True, name)
            if name == "weight_similarity":  # there is no other layer to compare with
                continue
            np.testing.assert_allclose(values[23], whole[name][23], rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_backward_pass_of_importance_ends_where_layers_begin() -> None:
    def beyond_forwards(depth: int, layers: Any) -> int:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=60, hidden_size=48, intermediate_size=96, num_hidden_layers=depth,
            num_attention_heads=12,
        )  # fmt: skip
        model = BertModel(config, add_pooling_layer=False).eval()
        batch = {"input_ids": torch.randint(1, 60, (2, 16))}
        with torch.no_grad(), Operations() as models_own:
            model(**batch)
        with Operations() as operations:
            measure(model, batch, metrics="importance", layers=layers, loss_fn=loss)
        # observed, each sequence alone, and these together
        return sum(operations.count.values()) - 4 * sum(models_own.count.values())

    def loss(output: Any, **_: Any) -> Tensor:
        return output.last_hidden_state.square().mean()  # type: ignore[no-any-return]

    one = beyond_forwards(1, None)
    assert beyond_forwards(24, [23]) <= 1.3 * one
    assert beyond_forwards(24, [0]) >= 5 * one  # that is what it passes through


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_waits_for_the_device(family: str) -> None:
    with patch.object(MaskStructures, "knows_at_once", staticmethod(lambda call: False)):  # as on a GPU
        waiting = counted(2, metrics=[family]).waiting
    # the model asks whether anything is padding
    assert set(waiting) <= ON_CPU | {("measurement/one_batch.py", "measure")}
    assert waiting["measurement/one_batch.py", "measure"] <= 1


def test_the_count_sees_what_is_called() -> None:
    with Operations() as operations:
        x = torch.ones(3)
        bool(x.add(1).sum() > 2)
    assert sum(operations.count.values()) == 5
    assert sum(operations.waiting.values()) == 1
