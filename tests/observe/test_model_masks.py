"""Masks of whole models reach no kernel as matrices where they are a row of keys and a band."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from lightning_geo import measure
from lightning_geo.kernels import AttentionProblem, attention
from lightning_geo.measurement import call_statistics
from lightning_geo.measurement.sample import Measurement
from lightning_geo.observe import Tap
from lightning_geo.observe.packed import documents
from support.not_waiting import not_waiting

N = 9
TRIANGLE = torch.ones(N, N, dtype=torch.bool).tril()

SMALL = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32,
}  # fmt: skip
MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL), add_pooling_layer=False),
    "llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(num_key_value_heads=2, **SMALL)),
    "mistral": lambda: transformers.MistralModel(
        transformers.MistralConfig(num_key_value_heads=2, sliding_window=5, **SMALL)
    ),
}


@contextmanager
def dense_masks() -> Iterator[list[int]]:
    """Counts the masks that differ between rows, of each call that is measured."""
    counts: list[int] = []

    def counted(problem: AttentionProblem) -> Any:
        counts.append(sum(mask.shape[2] > 1 for mask in problem.masks))  # type: ignore[union-attr]
        return attention(problem)

    with patch.object(call_statistics, "attention", counted):
        yield counts


def batch_of(left: bool) -> dict[str, Tensor]:
    real = torch.arange(12) < torch.tensor([[7], [12], [4]])
    real = real.flip(1) if left else real
    return {"input_ids": torch.randint(3, 60, real.shape), "attention_mask": real.long()}


def entropy_of(model: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
    """[layer, head], from the matrices that the model returns."""
    model.set_attn_implementation("eager")  # type: ignore[operator]
    real = batch["attention_mask"][:, None].double()
    with torch.no_grad():
        matrices = model(**batch, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    rows = [torch.special.entr(p.double()).sum(-1) for p in matrices]
    return np.stack([((x * real).sum(-1) / real.sum(-1)).mean(0).numpy() for x in rows])


@pytest.mark.parametrize("name", MODELS)
def test_transformers_masks_reach_no_kernel_as_matrices(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for left in (False, True):
        batch = batch_of(left)
        expected = entropy_of(model, batch)
        with dense_masks() as counts:
            record = measure(model, batch, metrics="entropy")
        assert counts == [0, 0]
        np.testing.assert_allclose(record["entropy"], expected, rtol=1e-5, atol=1e-6)
        assert record.coverage["left_out"] == {}


def test_layers_that_change_their_mask_are_right_or_absent_and_named() -> None:
    torch.manual_seed(0)
    model = MODELS["bert"]().eval()
    batch = batch_of(left=False)
    tap = Tap(model)

    def change(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        # bool and by name; in transformers 4 added to scores, and by position
        named = {**dict(enumerate(args)), **kwargs}
        place, mask = next((name, x) for name, x in named.items() if isinstance(x, Tensor) and x.dim() == 4)
        near, low = TRIANGLE.new_ones(12, 12).tril(2), torch.finfo(torch.float32).min
        named[place] = mask & near if mask.dtype == torch.bool else mask.masked_fill(~near, low)
        return tuple(map(named.get, range(len(args)))), {name: named[name] for name in kwargs}

    def sample() -> tuple[np.ndarray, list[int], Measurement]:
        with torch.no_grad(), dense_masks() as counts:
            measurement = Measurement({"": tap}, ("entropy",))
            with measurement.observe():
                model(**batch)
            return measurement.compute().stacks["encoder"]["entropy"], counts, measurement

    plain = entropy_of(model, batch)
    with not_waiting():
        for expected in ([1, 1], [0, 0], [0, 0]):
            entropy, counts, _ = sample()
            assert counts == expected
            np.testing.assert_allclose(entropy, plain, rtol=1e-5, atol=1e-6)
        layer = model.get_submodule("encoder.layer.1.attention.self")
        handle = layer.register_forward_pre_hook(change, with_kwargs=True)
        entropy, _, measurement = sample()
        np.testing.assert_allclose(entropy[0], plain[0], rtol=1e-5, atol=1e-6)
        assert np.isnan(entropy[1]).all()
        coverage = measurement.coverage
        assert (coverage.seen, coverage.measured) == (2, 1)
        ((reason, modules),) = coverage.left_out.items()
        assert "another structure" in reason
        assert modules == ["encoder.layer.1.attention.self"]
        entropy, counts, measurement = sample()
        assert counts == [0, 1]
        assert measurement.coverage.left_out == {}
    record = measure(model, batch, metrics="entropy")  # where the host knows at once
    np.testing.assert_allclose(record["entropy"], entropy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(entropy[0], plain[0], rtol=1e-5, atol=1e-6)
    assert (np.abs(entropy[1] - plain[1]) > 1e-3).any()
    handle.remove()


def test_arguments_are_waited_for_until_the_masks_are_known_and_packed_rows_are_right_or_absent() -> None:
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    tap, read = Tap(model), []
    waits = documents.Documents._read

    def reading(self: documents.Documents, tensors: Any) -> Any:
        read.append(len(list(tensors)))
        return waits(self, tensors)

    def sample(batch: dict[str, Tensor]) -> tuple[np.ndarray, int]:
        read.clear()
        with torch.no_grad(), patch.object(documents.Documents, "_read", reading):
            measurement = Measurement({"": tap}, ("entropy",))
            with measurement.observe():
                model(**batch)
            (arrays,) = measurement.compute().stacks.values()
            return arrays["entropy"], len(read)

    padded = batch_of(left=False)
    plain = entropy_of(model, padded)
    numbers = torch.tensor([[1] * 5 + [2] * 4 + [3] * 3])
    packed = {
        "input_ids": padded["input_ids"][:1],
        "attention_mask": (numbers[:, None, :, None] == numbers[:, None, None]).tril(),
        "position_ids": torch.cat([torch.arange(5), torch.arange(4), torch.arange(3)])[None],
    }
    whole = measure(model, packed, metrics="entropy")["entropy"]
    with not_waiting():
        for waited in (1, 0, 0):
            entropy, count = sample(padded)
            assert count == waited
            np.testing.assert_allclose(entropy, plain, rtol=1e-5, atol=1e-6)
        entropy, count = sample(packed)
        assert np.isnan(entropy).all()
        entropy, count = sample(packed)
        assert count == 1
        np.testing.assert_allclose(entropy, whole, rtol=1e-5, atol=1e-6)
