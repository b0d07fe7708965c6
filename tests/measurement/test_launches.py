"""What a sample launches on a GPU besides the model's own forward, by layer."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from support.device_trace import launches_of

pytest.importorskip("triton")
pytestmark = pytest.mark.slow


def bert() -> nn.Module:
    """BERT-base."""
    return BertModel(BertConfig(), add_pooling_layer=False)


def llama() -> nn.Module:
    """All but the vocabulary of an 8B model."""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=4096,
    )  # fmt: skip
    return LlamaModel(config)


#: Tokens of 16 sequences are gathered; 32 x 512 are computed of a few layers at a time, and merged later; of
#: 512 x 512 each layer's rows are added up by themselves.
@pytest.mark.parametrize(
    ("sequences", "tokens", "padded", "most"),
    [(16, 128, False, 31), (16, 128, True, 37), (32, 512, True, 40), (512, 512, True, 76)],
)  # fmt: skip
def test_a_layer_of_bert_takes_few_launches(sequences: int, tokens: int, padded: bool, most: int) -> None:
    launches = launches_of(bert, sequences, tokens, padded=padded)
    assert launches["kernel rows_kernel"] == 12
    assert launches.total() <= 12 * most, launches.most_common(12)


def test_a_layer_of_a_large_decoder_takes_few_launches() -> None:
    launches = launches_of(llama, 4, 2048, padded=True, causal=True)
    assert launches["kernel rows_kernel"] == 32
    assert launches.total() <= 32 * 32, launches.most_common(12)
