"""The harness itself: every value is drawn, models compute their truth, and a wrong number is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from harness import families, strategies
from harness.checking import Wrong, check, compare, measured
from harness.description import ENTROPY, PATTERN, Description
from harness.models import build
from harness.profiles import examples
from harness.truth import truth_of

PLAIN = Description(
    structure="causal", padding="right", lengths=(6, 4), told="int", values="bool", shape="b1qk"
)

#: Every value that must occur, by dimension.
VALUES = {
    "how": "sdpa matmul einsum baddbmm flex mha encoder decoder",
    "softmax": "functional torch method float32 module sequential",
    "scale": "default given query",
    "between": "none sequential",
    "axes": "bhnd bnhd folded folded_h_major single list heads_first windows_bwhnd windows_bhwnd grouped",
    "declared": "num_heads heads n_head num_attention_heads config none",
    "projection": "separate fused",
    "grouping": "none repeat expand enable_gqa",
    "structure": "full causal window sparse shifted",
    "padding": "none right left",
    "told": "none int bool key_padding_mask lengths",
    "values": "none bool eye masked_fill where inf min -10000 -1000 -100 is_causal upper_left lower_right",
    "shape": "qk 11qk b11k b1qk bhqk",
    "bias": "none alibi",
    "packed": "none positions documents",
    "keys": "own prefix cache bias_kv zero_attn",
    "source": "self normed memory_position memory_keyword",
    "parts": "one differential joint discarded channels channels_only",
    "tree": "list sequential stages nested forward repeated checkpoint checkpoint_reentrant "
    "checkpoint_forward scripted attributes compiled",
    "inputs": "embeddings ids",
    "dtype": "float32 float64 bfloat16",
}
STRATEGIES = [strategies.sdpa, strategies.sdpa_axes, strategies.by_hand, strategies.flex, strategies.modules]


def draws(strategy: Any, count: int) -> list[Any]:
    """The first examples of a strategy, the same ones every time."""
    found: list[Any] = []

    @settings(
        max_examples=count, database=None, deadline=None, derandomize=True, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def collect(description: Any) -> None:
        found.append(description)

    collect()
    return found


@pytest.mark.slow
def test_every_value_of_every_dimension_is_drawn() -> None:
    drawn = [d for strategy in STRATEGIES for d in draws(strategy(), 400)]
    missing = {
        name: rest
        for name, told in VALUES.items()
        if (rest := set(told.split()) - {getattr(d, name) for d in drawn})
    }
    assert not missing
    coincidences = {
        "one sequence": any(d.batch == 1 for d in drawn),
        "one token": any(d.length == 1 for d in drawn),
        "as many sequences as heads": any(d.batch == d.heads > 1 for d in drawn),
        "as many tokens as features": any(d.length == d.head_size for d in drawn),
        "a memory as long as the queries": any(d.memory_length == d.length > 1 for d in drawn),
    }
    assert [name for name, there in coincidences.items() if not there] == []
    assert set(families.NAMES) == {d.name for d in draws(families.families(), 200)}


def test_examples_are_far_from_one_another() -> None:
    kinds = {
        (d.how, d.axes, d.structure, d.padding, d.tree, d.values) for d in draws(strategies.by_hand(), 200)
    }
    assert len(kinds) > 150


def test_nearly_every_number_must_be_there() -> None:
    """What may be absent is the exception: else a tap that says nothing would pass."""
    drawn = [d for strategy in STRATEGIES for d in draws(strategy(), 100)]
    assert sum(not d.allowed_absent() for d in drawn) > 0.6 * len(drawn)
    assert not PLAIN.allowed_absent()


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(s, marks=[pytest.mark.compiles] * (s is strategies.flex)) for s in STRATEGIES],
    ids=lambda strategy: strategy.__name__,
)
def test_a_model_computes_what_its_truth_says(strategy: Callable[[], Any]) -> None:
    """The weighted values are the model's own outputs: this is asserted where the truth is made."""

    # torch compiles a mask for every model of flex attention, for a third of a second
    @examples(20 if strategy is strategies.flex else 60)
    @given(strategy())
    def property_(description: Description) -> None:
        truth_of(build(description))

    property_()


def test_a_description_is_all_there_is() -> None:
    for d in draws(strategies.by_hand(), 20):
        again = eval(repr(d), {"Description": Description})
        assert again == d
        one, other = build(d), build(again)
        for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        assert repr(one.batch) == repr(other.batch)


def test_truth_against_the_weights_of_multi_head_attention() -> None:
    padded = {"padding": "right", "lengths": (6, 3), "told": "int", "values": "bool", "padding_mask": True}
    built = build(Description(how="mha", declared="none", layers=1, **padded))
    (truth,) = truth_of(built)
    block = built.model.layers[0]
    h = block.norm(built.batch["x"])
    keep = built.plan.real
    p = block.attn.mha(h, h, h, key_padding_mask=~keep, average_attn_weights=False)[1].double()
    means = [sequence[:, rows] for sequence, rows in zip(p, keep, strict=True)]
    entropy = torch.stack([torch.special.entr(x).sum(-1).mean(-1) for x in means]).mean(0)
    first = torch.stack([x[..., 0].mean(-1) for x in means]).mean(0)
    np.testing.assert_allclose(truth.numbers["entropy"], entropy.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(truth.numbers["first_mass"], first.detach().numpy(), atol=1e-6)


# -- a test of the test: what is broken on purpose is found


@pytest.fixture(scope="module")
def sound() -> tuple[Any, Any]:
    """A record that is right, and the truth of its model."""
    built = build(PLAIN)
    record, truth = measured(built.model, built.batch), truth_of(built)
    assert compare(record, truth) == []
    return record, truth


@pytest.mark.parametrize("metric", [*ENTROPY, *PATTERN])
def test_a_shifted_number_is_found(sound: tuple[Any, Any], metric: str) -> None:
    record, truth = copy.deepcopy(sound)
    record.stacks["layers"][metric][1, 1] += 5e-3
    (fault,) = compare(record, truth)
    assert fault.startswith(f"'layers.1.attn' attention 0 in layers[1]: {metric}: expected [")


def _swap_layers(record: Any) -> None:
    for array in record.stacks["layers"].values():
        array[:] = array[::-1].copy()


def _swap_heads(record: Any) -> None:
    record.stacks["layers"]["entropy"][0] = record.stacks["layers"]["entropy"][0, ::-1].copy()


def _swap_rows(record: Any) -> None:
    record.model["stacks"]["layers"]["modules"].reverse()
    _swap_layers(record)


def _drop_metric(record: Any) -> None:
    del record.stacks["layers"]["attention_distance"]


def _drop_layer(record: Any) -> None:
    for array in record.stacks["layers"].values():
        array[1] = np.nan


def _drop_one_number(record: Any) -> None:
    record.stacks["layers"]["entropy"][1, 1] = np.nan


def _add_row(record: Any) -> None:
    record.stacks["other"] = copy.deepcopy(record.stacks["layers"])
    record.model["stacks"]["other"] = {"modules": ["norm", None], "heads": [2, 2]}


def _unnamed(record: Any) -> None:
    record.model["stacks"]["layers"]["modules"][1] = ""


def _one_head_more(record: Any) -> None:
    record.model["stacks"]["layers"]["heads"][0] = 3


def _call_it_cross(record: Any) -> None:
    record.stacks["layers.cross"] = record.stacks.pop("layers")
    record.model["stacks"]["layers.cross"] = record.model["stacks"].pop("layers")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_swap_layers, "expected ["),
        (_swap_heads, "entropy: expected ["),
        (_swap_rows, "expected in row"),
        (_drop_metric, "attention_distance: expected"),
        (_drop_layer, "got nothing"),
        (_drop_one_number, "nan]"),
        (_add_row, "numbers of nothing that was computed: other[0], 'norm'"),
        (_unnamed, "without the name of a module"),
        (_one_head_more, "expected 2 heads, got 3"),
        (_call_it_cross, "expected no cross-attention"),
    ],
)
def test_a_changed_record_is_found(sound: tuple[Any, Any], change: Callable[[Any], None], said: str) -> None:
    record, truth = copy.deepcopy(sound)
    change(record)
    faults = compare(record, truth)
    assert said in "\n".join(faults)


def test_what_is_absent_needs_a_reason_and_leave(sound: tuple[Any, Any]) -> None:
    record, truth = copy.deepcopy(sound)
    _drop_metric(record)
    changed = SimpleNamespace(stacks=record.stacks, model=record.model, coverage=None)
    assert all(
        fault.endswith("without a reason") for fault in compare(changed, truth, ["attention_distance"])
    )
    assert len(compare(changed, truth, ["attention_distance"])) == 2
    changed.coverage = {"left_out": {"positions are not known": ["layers.0.attn"]}}
    (fault,) = compare(changed, truth, ["attention_distance"])
    assert fault.startswith("'layers.1.attn'")
    changed.coverage = SimpleNamespace(
        left_out={"positions are not known": ["layers.0.attn", "layers.1.attn"]}
    )
    assert compare(changed, truth, ["attention_distance"]) == []
    assert len(compare(changed, truth)) == 2, "a reason alone is no leave"


def test_a_sample_given_up_as_a_whole(sound: tuple[Any, Any]) -> None:
    _, truth = sound
    everything = (*ENTROPY, *PATTERN)
    named = ValueError("layers.0.attn: heads are not declared")
    assert compare(named, truth, everything) == []
    assert compare(named, truth) != []
    assert compare(ValueError("nothing was seen"), truth, everything) != []
    assert compare(IndexError("layers.0.attn"), truth, everything) != []


def test_a_failure_prints_description_expected_and_got(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(built: Any) -> Any:
        truth = truth_of(built)
        truth[0].numbers["entropy"] = truth[0].numbers["entropy"] + 1e-3
        return truth

    check(PLAIN)
    monkeypatch.setattr("harness.checking.truth_of", shifted)
    with pytest.raises(Wrong) as failure:
        check(PLAIN)
    first, second = str(failure.value).splitlines()
    assert first == repr(PLAIN)
    assert second.startswith("'layers.0.attn' attention 0 in layers[0]: entropy: expected [")
    assert ", got [" in second
