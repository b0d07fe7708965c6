"""Observing the asked layers alone: the numbers of the whole, bit for bit, or the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from families.models import FAMILIES
from lightning_geo.metrics.selection import select
from lightning_geo.observe import Tap
from lightning_geo.observe.evidence.mask_structure import MaskStructures
from lightning_geo.observe.narrow_tap import ChangedRunError, NarrowTap
from support import packed_models
from support.narrowed_samples import METRICS, Layer, Model, Samples, batch


def trained(model: nn.Module) -> None:
    """Change every parameter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9).add_(torch.randn_like(parameter), alpha=0.02)


def of_family(name: str, implementation: str, padding: int) -> tuple[nn.Module, dict[str, Any]]:
    family = FAMILIES[name]
    return family.build(implementation), family.batch(family.paddings[padding])


def packed(name: str, implementation: str, padding: int) -> tuple[nn.Module, dict[str, Any]]:
    model = packed_models.build(name.removeprefix("packed "), implementation)
    return model, packed_models.flattened(packed_models.documents())


#: Whether the asked layers can be observed alone; ALBERT runs one layer's modules for all, and DeBERTa's
#: layers are given a parameter.
MODELS = {
    **dict.fromkeys(("bert", "bart", "t5", "llama", "bloom", "gpt2", "clip", "swin", "whisper"), True),
    **dict.fromkeys(("packed llama", "packed modernbert"), True),
    **dict.fromkeys(("albert", "deberta_v2"), False),
}  # fmt: skip


@pytest.mark.slow
@settings(max_examples=15)
@given(
    st.sampled_from(sorted(MODELS)), st.sampled_from(["sdpa", "eager"]), st.integers(-1, 0),
    st.sampled_from([[0], [1], r"\b0\.(?!.*\bcross)"]), st.booleans(),
)  # fmt: skip
def test_asked_layers_alone_have_the_numbers_of_the_whole(
    name: str, implementation: str, padding: int, layers: Any, waiting: bool
) -> None:
    if name in FAMILIES and implementation not in FAMILIES[name].implementations:
        implementation = FAMILIES[name].implementations[0]
    build = packed if name.startswith("packed") else of_family
    as_on_a_gpu = patch.object(MaskStructures, "knows_at_once", staticmethod(lambda call: not waiting))
    with as_on_a_gpu:
        model, batch = build(name, implementation, padding)
        samples, narrow = Samples(model, batch, layers), []
        for _ in range(3):
            narrow.append(samples.is_narrow())
            trained(model)
    assert not any(narrow[:2])
    if isinstance(layers, list):
        assert narrow[-1] == MODELS[name]


# Cross-attention to the same tokens after other attentions; scores with products of earlier layers in them;
# keys of another sequence that are no argument; a run that no hook sees; a parameter, known by its address.
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("", True),
        ("memory", True),
        ("scores", False),
        ("attribute", False),
        ("direct", False),
        ("latents", False),
    ],
)
def test_what_alone_would_look_otherwise_is_observed_whole(how: str, expected: bool) -> None:
    samples = Samples(Model(how), batch(), [3])
    assert [samples.is_narrow() for _ in range(4)] == [False, False, expected, expected]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("skips", "other layers ran, or in another order"),
        ("again", "other layers ran, or in another order"),
        ("scores", r"layers\.3 was given other arguments"),
        ("shorter", r"layers\.3 was given other arguments"),
        ("buffer", "it has other buffers"),
    ],
)
def test_a_run_that_is_another_costs_its_sample_and_the_next_is_whole(how: str, said: str) -> None:
    model = Model()
    samples = Samples(model, batch(), [3])
    assert [samples.is_narrow() for _ in range(3)] == [False, False, True]
    model.how = how
    if how == "buffer":
        model.register_buffer("more", torch.zeros(1))
    with pytest.raises(ChangedRunError, match=f"{said}. The next sample observes all"):
        samples.is_narrow()
    assert [samples.is_narrow() for _ in range(3)] == [False] * 3


def test_a_model_with_new_modules_is_observed_whole_again() -> None:
    model = Model()
    samples = Samples(model, batch(), [3])
    assert [samples.is_narrow() for _ in range(3)] == [False, False, True]
    model.layers[0] = Layer()
    assert [samples.is_narrow() for _ in range(3)] == [False, False, True]


def test_projections_are_compared_before_they_are_taken_from_the_asked_layers_alone() -> None:
    samples = Samples(Model(), batch(), [3])
    samples.metrics = select("entropy")
    assert [samples.is_narrow() for _ in range(3)] == [False, False, True]
    samples.metrics = METRICS
    assert [samples.is_narrow() for _ in range(2)] == [False, True]


def test_a_model_that_shows_other_calls_on_the_same_inputs_stays_whole() -> None:
    model = Model()
    samples = Samples(model, batch(), [3])
    assert not samples.is_narrow()
    model.how = "memory"
    assert [samples.is_narrow() for _ in range(3)] == [False] * 3


def test_a_model_that_fails_has_shown_nothing() -> None:
    model = Model()
    samples = Samples(model, batch(), [3])
    assert not samples.is_narrow()
    model.how = "fails"
    with pytest.raises(RuntimeError, match="planted"):
        samples.is_narrow()
    model.how = ""
    assert [samples.is_narrow() for _ in range(2)] == [False, True]


def test_another_number_of_attentions_is_noticed() -> None:
    model = Model()
    samples = Samples(model, batch(), [3])
    assert [samples.is_narrow() for _ in range(3)] == [False, False, True]
    layer, forward = model.layers[3], model.layers[3].forward
    layer.forward = lambda x, scores=None, memory=None: (forward(x)[0] + forward(x.flip(1))[0], x)
    with pytest.raises(ChangedRunError, match="its attention calls are others"):
        samples.is_narrow()
    assert not samples.is_narrow()


def planted(what: str) -> contextlib.AbstractContextManager[Any]:
    """Let the narrow tap show something else."""
    original = NarrowTap._know

    def know(tap: NarrowTap, frame: Any) -> None:
        original(tap, frame)
        if what == "origin" and frame.name:
            for x in frame.given.values():
                tap._events.evidence.origins._known.drop(x)
        elif what == "special":
            tap._events.evidence.special_ids = (5, 9)
        elif what == "error" and frame.name:
            raise ValueError("planted")

    return patch.object(NarrowTap, "_know", know)


@pytest.mark.parametrize("what", ["origin", "special", "error"])
def test_a_planted_difference_keeps_samples_whole(what: str) -> None:
    model, inputs = of_family("bart", "sdpa", -1)
    with planted(what):
        samples = Samples(model, inputs, [1])
        assert [samples.is_narrow() for _ in range(3)] == [False] * 3


def test_only_functions_in_the_asked_layer_are_followed() -> None:
    model = Model()
    samples, seen = Samples(model, batch(), [3]), []
    original: Callable[..., Any] = Tap.function

    def function(tap: Tap, func: Any, *args: Any) -> Any:
        seen.append(tap._stack.frames[-1].name)
        return original(tap, func, *args)

    with patch.object(Tap, "function", function):
        counts = []
        for _ in range(3):
            seen.clear()
            samples.take(samples._narrowings).compute()
            counts.append(set(seen))
    assert counts[0] > {"embed", "layers.0", "layers.3"}
    assert counts[2] == {"layers.3", "layers.3.project"}
