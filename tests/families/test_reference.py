"""The reference is held to what must be true of it before anything is compared with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from families.expected import entropy
from families.models import FAMILIES
from families.reference import Layer, blocks_of, layers_of
from support.gathered import gathered

CASES = [(name, padding) for name, family in FAMILIES.items() for padding in family.paddings]
TWO_WAYS = [
    (name, implementation, padding)
    for name, padding in CASES
    for implementation in FAMILIES[name].implementations
    if implementation == "sdpa"
]


@pytest.mark.parametrize(("name", "padding"), CASES)
def test_a_reference_is_whole_and_its_parts_agree(name: str, padding: str) -> None:
    scales = {stack.name: stack.scale for stack in FAMILIES[name].stacks}
    with gathered(f"{name}, padding {padding}") as named:
        for stack, layers in layers_of(name, padding).items():
            for index, layer in enumerate(layers):
                with named(f"{stack}, layer {index}: valid rows spend all their attention on visible keys"):
                    all_is_spent(name, layer)
                with named(f"{stack}, layer {index}: scores give the probabilities"):
                    scores_give_probabilities(name, scales[stack], layer)
                if padding == "none":  # otherwise agreement on entropies would prove nothing
                    with named(f"{stack}, layer {index}: no head is uniform and none is one-hot"):
                        share = entropy(layer)["normalized_entropy"]
                        assert ((share > 0.05) & (share < 0.97)).all(), share


def all_is_spent(name: str, layer: Layer) -> None:
    rows = np.where(layer.visible[:, None], layer.probabilities, 0.0).sum(-1)
    hidden = np.where(layer.visible[:, None], 0.0, layer.probabilities).sum(-1)
    valid = np.broadcast_to(layer.queries[:, None], rows.shape)
    if name == "gpt_oss":  # a sink takes its share, no key gets it
        assert ((rows[valid] > 0.05) & (rows[valid] < 0.95)).any()
    else:
        np.testing.assert_allclose(rows[valid], 1.0, atol=1e-12)
    np.testing.assert_allclose(hidden[valid], 0.0, atol=1e-12)


def scores_give_probabilities(name: str, scale: float | None, layer: Layer) -> None:
    """Proves the hooks' queries and keys, the scale, the bias, the cap and the visible set at once."""
    if scale is None or name == "gptj":  # gptj rotates in a layout of its own
        assert layer.scores is None
        return
    assert layer.scores is not None, "the reference lost queries or keys"
    scores = np.where(layer.visible[:, None], layer.scores, -np.inf)
    valid = np.broadcast_to(layer.queries[:, None, :, None], scores.shape)
    with np.errstate(invalid="ignore"):
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        # a sink scales whole rows
        known = layer.probabilities / layer.probabilities.sum(-1, keepdims=True)
    np.testing.assert_allclose(p[valid], known[valid], atol=1e-12)


@pytest.mark.parametrize(("name", "implementation", "padding"), TWO_WAYS)
def test_every_implementation_computes_the_same_model(name: str, implementation: str, padding: str) -> None:
    """The float32 model that is measured and the float64 twin agree on what blocks return."""
    family = FAMILIES[name]
    model = family.build(implementation)
    outputs: list[Tensor] = []
    last = family.stacks[-1]
    blocks_of(model, last)[-1].register_forward_hook(
        lambda module, args, result: outputs.append(result[0] if isinstance(result, tuple) else result)
    )
    with torch.enable_grad():  # off the encoder's fast path, whose hooks are given nested tensors
        model(**family.batch(padding))
    layer = layers_of(name, padding)[last.name][-1]
    measured = outputs[-1].transpose(0, 1) if last.sequence_first else outputs[-1]
    measured = measured.detach().numpy()[layer.tokens]
    np.testing.assert_allclose(measured, layer.block_output[layer.tokens], rtol=1e-4, atol=1e-4)
