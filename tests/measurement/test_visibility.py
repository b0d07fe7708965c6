"""What masks let real models see: against what their masks are known to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPTJConfig, GPTJModel, MistralConfig, MistralModel

from families.models import FAMILIES
from lightning_geo import measure
from support.lit import bert, gpt2, sequences

REAL = torch.stack([item["attention_mask"] for item in sequences(4)])
IDS = torch.stack([item["input_ids"] for item in sequences(4)])  # padding is 0, twice at least in two rows
LEFT = {"input_ids": IDS.flip(1), "attention_mask": REAL.flip(1)}


def seen(model: nn.Module, **batch: Any) -> tuple[list[float], list[float]]:
    torch.manual_seed(0)
    record = measure(model, batch, metrics="masks")
    assert record.keys() == ["future_visible.probe", "padding_visible.probe"]
    return record["future_visible.probe"].tolist(), record["padding_visible.probe"].tolist()


def near(found: list[float], value: float) -> bool:
    return found == pytest.approx([value] * len(found), nan_ok=True, abs=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_causal_and_bidirectional_models(implementation: str) -> None:
    options: Any = {"attn_implementation": implementation}
    causal, whole = windowed(32, **options), bert(**options, pad_token_id=0)
    for mask in (REAL, REAL.flip(1), torch.ones_like(REAL)):
        padded = bool((mask == 0).any())
        for model, future in ((causal, 0.0), (whole, 1.0)):
            later, padding = seen(model, input_ids=IDS, attention_mask=mask)
            assert near(later, future)
            assert near(padding, 0.0 if padded else np.nan)
    # the collator no longer returns the mask: padding is known by its id
    ends = (IDS == 0) & ((IDS == 0).sum(1, keepdim=True) > 1)
    assert ends.any()
    assert [near(x, y) for x, y in zip(seen(whole, input_ids=IDS), (1.0, 1.0), strict=True)] == [True] * 2
    assert [near(x, y) for x, y in zip(seen(causal, input_ids=IDS), (0.0, 0.0), strict=True)] == [True] * 2
    later, padding = seen(causal, input_ids=LEFT["input_ids"])
    assert near(later, 0.0)
    assert near(padding, 1.0)  # in front, where causality does not hide it


class Careless(nn.Module):
    """Hands on everything but the mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.model(input_ids=input_ids)


def test_a_mask_that_the_model_does_not_use() -> None:
    later, padding = seen(Careless(bert()), input_ids=IDS, attention_mask=REAL)
    assert near(later, 1.0)
    assert near(padding, 1.0)


def windowed(window: int, **options: Any) -> nn.Module:
    config = MistralConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, sliding_window=window, max_position_embeddings=32, pad_token_id=0, **options,
    )  # fmt: skip
    return MistralModel(config)


def test_windows_and_softmax_written_by_hand() -> None:
    later, padding = seen(windowed(3), **LEFT)
    assert near(later, 0.0)
    assert near(padding, 0.0)
    by_hand = GPTJModel(
        GPTJConfig(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32, rotary_dim=4)
    )
    later, padding = seen(by_hand, **LEFT)
    assert near(later, 0.0)
    assert near(padding, 0.0)


def test_some_tokens_see_later_ones_and_documents_are_apart() -> None:
    model, n = gpt2(attn_implementation="sdpa"), 10
    i, j = torch.arange(n)[:, None], torch.arange(n)
    last = ((j <= i) | (i > 5) & (j > 5)).expand(4, 1, n, n)
    later, _ = seen(model, input_ids=IDS.clamp(min=2), attention_mask=last)
    assert near(later, 6 / 45)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    packed = measure(
        windowed(8), {"input_ids": IDS[:1].clamp(min=2), "position_ids": positions}, metrics="masks"
    )
    assert near(packed["future_visible.probe"].tolist(), 0.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_causal_or_not(name: str) -> None:
    """A model that sees later tokens sees all of them, but for windows; none sees padding."""
    family = FAMILIES[name]
    for padding in family.paddings:
        record = measure(family.build(family.implementations[0]), family.batch(padding), metrics="masks")
        for stack, arrays in record.stacks.items():
            if "future_visible.probe" not in arrays:
                assert stack.endswith("cross")
                continue
            later = arrays["future_visible.probe"]
            assert ((later == 0) | (later > 0.1)).all() or np.isnan(later).all(), (stack, later)
            assert (np.nan_to_num(arrays["padding_visible.probe"]) == 0).all()
