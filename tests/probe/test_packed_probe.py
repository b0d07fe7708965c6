"""A probe of packed rows: it counts documents, is limited in tokens, and is cut where documents end."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_geo import GeometryMonitor, measure
from lightning_geo.observe.replay.undisturbed_run import Call
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.limits import within_over_ranks
from lightning_geo.probe.probe import Probe, probe_from
from lightning_geo.probe.recorder import CallRecorder
from support.lit import Lit, fit
from support.packed_models import FIRST, LENGTHS, assert_same, build, documents, flattened, numbers_of, padded

GIVEN = documents()


def packed(given: list[Tensor], **options: Any) -> ProbeCall:
    return ProbeCall.of("", Call((), flattened(given, **options)))


def assert_equal(ours: Any, theirs: Any) -> None:
    """The same arguments to the last bit."""
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
        else:
            assert ours[name] == value


# -- what a call's sequences are


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("chosen", [slice(2), slice(1, None, 2), slice(5, None)])
def test_documents_of_a_row_are_taken_as_if_packed_alone(chosen: slice, lengths: bool) -> None:
    call = packed(GIVEN, lengths=lengths)
    assert (call.rows, call.divisible, call.sequences.tokens) == (6, True, LENGTHS)
    taken = call.take(chosen)
    assert_equal(taken.call.kwargs, flattened(GIVEN[chosen], lengths=lengths))
    assert taken.sequences.tokens == LENGTHS[chosen]
    if taken.rows > 1 or lengths:
        assert taken.sequences == ProbeCall.of("", taken.call).sequences


def test_all_that_has_an_entry_for_each_token_is_cut() -> None:
    extra = {
        "labels": torch.arange(29)[None], "weights": torch.rand(29), "embeds": torch.rand(1, 29, 4),
        "planes": torch.arange(29).expand(3, 1, 29), "mask": torch.rand(1, 1, 29, 29),
        "scale": torch.tensor(2.0),
        "pairs": torch.ones(29, 29, dtype=torch.bool), "flag": None, "nested": {"more": [torch.arange(29)]},
    }  # fmt: skip
    call = ProbeCall.of("", Call((), {**flattened(GIVEN), **extra}))
    taken = call.take(slice(1, 3)).call.kwargs  # tokens 7 to 19
    assert taken["labels"].tolist() == [list(range(7, 20))]
    assert taken["nested"]["more"][0].tolist() == list(range(7, 20))
    assert torch.equal(taken["mask"], extra["mask"][:, :, 7:20, 7:20])
    assert [taken[n].shape for n in ("weights", "embeds", "planes", "pairs", "scale")] == [
        (13,), (1, 13, 4), (3, 1, 13), (13, 13), (),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 5), (6,), (1, 29, 29), (2, 29)])
def test_a_row_is_whole_where_an_argument_cannot_be_cut(shape: tuple[int, ...]) -> None:
    """One entry for each document, or an axis that is as long by chance: nobody knows."""
    call = ProbeCall.of("", Call((), {**flattened(GIVEN), "extra": torch.zeros(shape)}))
    assert (call.rows, call.divisible) == (6, False)
    assert call.take(slice(1)) is call
    assert call.sequences.packed


def test_rows_of_documents_count_as_many() -> None:
    rows = ((7, 1, 2), (3, 5), (4,))
    numbers = torch.cat([numbers_of(row, 10) for row in rows])
    call = ProbeCall.of("", Call((), {"input_ids": numbers * 5, "attention_mask": numbers}))
    assert (call.rows, call.divisible) == (3, True)
    assert call.sequences.counts == (3, 2, 1)
    assert call.sequences.tokens == (10, 8, 4)
    alone = call.take(slice(1, 2))
    assert (alone.rows, alone.sequences.tokens) == (2, (3, 5))


@pytest.mark.parametrize(
    ("kwargs", "tokens"),
    [
        (padded(GIVEN), LENGTHS),
        ({"x": torch.rand(2, 7, 4)}, (7, 7)),
        ({"ids": torch.ones(2, 7, dtype=torch.long)}, (7, 7)),
        ({"pixel_values": torch.rand(2, 3, 8, 8), "labels": torch.ones(2, dtype=torch.long)}, (0, 0)),
        ({"waves": torch.rand(2, 16_000)}, (0, 0)),
    ],
)
def test_tokens_of_rows(kwargs: dict[str, Tensor], tokens: tuple[int, ...]) -> None:
    sequences = ProbeCall.of("", Call((), kwargs)).sequences
    assert sequences.tokens == tokens
    assert not sequences.packed


def test_a_document_has_the_digest_of_a_row_of_its_own() -> None:
    """However it came: in a packed row, numbered in the padding mask, or one row of a padded batch."""
    lengths = (3, 4, 2)
    given = documents(lengths)
    alone = padded(given)
    alone["position_ids"] = torch.arange(4).expand(3, 4)
    numbered = {"input_ids": torch.cat(given)[None], "attention_mask": numbers_of(lengths)}
    numbered["position_ids"] = flattened(given)["position_ids"]
    calls = [ProbeCall.of("", Call((), kwargs)) for kwargs in (alone, numbered)]
    assert calls[0].digests() == calls[1].digests()
    flat = packed(given, lengths=True).digests()
    assert flat == [d for ids in given for d in packed([ids]).digests()]
    assert len(set(flat)) == 3


# -- limits


def first_within(tokens: int | None, size: int, lengths: list[int]) -> list[int]:
    """By the definition: in order, until the next would be too much, but one at least."""
    kept: list[int] = []
    for length in lengths[:size]:
        if kept and tokens is not None and sum(kept) + length > tokens:
            break
        kept.append(length)
    return kept


many = st.lists(st.integers(1, 9), min_size=1, max_size=9)


def divided(lengths: list[int], cuts: list[int], pack: bool) -> list[ProbeCall]:
    """The documents in several calls, packed into a row each or padded."""
    given = documents(tuple(lengths))
    bounds = sorted({0, len(given), *(c % len(given) for c in cuts)})
    parts = [given[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]  # noqa: RUF007
    return [packed(part) if pack else ProbeCall.of("", Call((), padded(part))) for part in parts]


@given(many, st.lists(st.integers(0, 8), max_size=3), st.integers(1, 9), st.integers(1, 30), st.booleans())
def test_a_probe_is_cut_to_sequences_and_tokens(
    lengths: list[int], cuts: list[int], size: int, tokens: int, pack: bool
) -> None:
    calls, expected = divided(lengths, cuts, pack), first_within(tokens, size, lengths)
    probe = Probe.joined([calls], size, tokens)
    assert probe is not None
    assert [n for call in probe.calls for n in call.sequences.tokens] == expected
    unlimited = Probe.joined([calls], size)
    assert unlimited is not None
    assert sum(call.rows for call in unlimited.calls) == min(size, len(lengths))
    if pack:  # the same documents have the same fingerprint however they were packed
        again = Probe(divided(lengths[: len(expected)], [], pack))
        assert probe.fingerprint == again.fingerprint


@given(many, st.integers(1, 9), st.integers(1, 30), st.integers(1, 4), st.booleans())
def test_ranks_keep_what_one_process_keeps(
    lengths: list[int], size: int, tokens: int, world: int, pack: bool
) -> None:
    """A distributed sampler deals documents out in turn, before they are packed or padded."""
    given = documents(tuple(lengths))
    shares = [given[rank::world] for rank in range(world)]
    make = packed if pack else lambda x: ProbeCall.of("", Call((), padded(x)))
    everyone = [[make(part) for part in (mine[:2], mine[2:]) if part] for mine in shares]
    kept = within_over_ranks(everyone, size, tokens)
    found = sorted(n for mine in kept for call in mine for n in call.sequences.tokens)
    assert found == sorted(first_within(tokens, size, lengths))


def test_a_row_of_documents_is_cut_within() -> None:
    rows = ((7, 1, 2), (3, 5, 2))
    numbers = torch.cat([numbers_of(row, 10) for row in rows])
    call = ProbeCall.of("", Call((), {"input_ids": numbers * 5, "attention_mask": numbers}))
    for size, tokens, expected in [
        (4, None, [(7, 1, 2), (3,)]), (2, None, [(7, 1)]), (9, 18, [(7, 1, 2), (3, 5)]),
        (9, 5, [(7,)]), (9, 10, [(7, 1, 2)]), (9, None, [(10, 10)]),
    ]:  # fmt: skip
        probe = Probe.joined([[call]], size, tokens)
        assert probe is not None
        assert [call.sequences.tokens for call in probe.calls] == expected


def test_what_cannot_be_divided_is_kept_whole_if_it_is_the_first() -> None:
    whole = [ProbeCall.of("", Call((), {**flattened(GIVEN), "extra": torch.zeros(6)})) for _ in range(3)]
    for size, tokens, expected in [(1, 5, 1), (16, 5, 1), (7, None, 2), (16, 58, 2), (16, None, 3)]:
        probe = Probe.joined([whole], size, tokens)
        assert probe is not None
        assert len(probe.calls) == expected


def test_sixteen_rows_of_8k_are_two() -> None:
    class Model(torch.nn.Module):
        def forward(self, **kwargs: Any) -> None:
            """Takes anything."""

    model = Model()
    recorder = CallRecorder({"": model}, 16, 16_384)
    recorder.start()
    for _ in range(4):
        model(input_ids=torch.ones(4, 8192, dtype=torch.long))
    recorder.stop()
    (call,) = recorder.calls
    assert call.rows == 2


def test_a_given_dataloader_is_limited_and_a_batch_is_not() -> None:
    batch = flattened(GIVEN)
    loader = DataLoader([GIVEN[:3], GIVEN[3:]], batch_size=None, collate_fn=flattened)  # type: ignore[arg-type]
    assert [c.kwargs["input_ids"].shape[1] for c in probe_from(loader, 4)] == [20, 3]
    assert [c.kwargs["input_ids"].shape[1] for c in probe_from(loader, 16, 10)] == [8]
    assert [c.kwargs["input_ids"].shape[1] for c in probe_from(batch, 2, 4)] == [29]


@pytest.mark.parametrize("tokens", [0, -1, 2.5, True])
def test_the_limit_is_a_positive_number(tokens: Any) -> None:
    with pytest.raises(ValueError, match="`probe_tokens` to be an integer of at least 1 but got"):
        GeometryMonitor(probe_tokens=tokens)


# -- runs


class Packed(Lit):
    """A causal model on flattened batches with labels."""

    def __init__(self) -> None:
        super().__init__(lambda: build("llama"), learning_rate=0.0)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss  # type: ignore[no-any-return]


def with_labels(given: list[Tensor]) -> dict[str, Any]:
    """Flattened; the first token of a document is no label, as the collator does it."""
    batch = flattened(given)
    labels = [ids.clone() for ids in given]
    for row in labels:
        row[0] = -100
    return {**batch, "labels": torch.cat(labels)[None]}


def loader(calls: int = 3) -> DataLoader[Any]:
    sizes = [documents((4, 9, 3), seed) for seed in range(calls)]
    return DataLoader(sizes, batch_size=None, collate_fn=with_labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(("limits", "kept"), [({"probe_size": 2}, 2), ({"probe_tokens": 14}, 2), ({}, 3)])
def test_a_run_on_a_probe_of_documents(tmp_path: Path, limits: dict[str, int], kept: int) -> None:
    metrics = ["entropy", "pattern", "cone", "subspace", "stream", "head", "importance"]
    monitor = GeometryMonitor(1, metrics=metrics, special_token_ids=[FIRST], strict=True, **limits)  # type: ignore[arg-type]
    module = Packed()
    fit(tmp_path, module, monitor, data=loader(), steps=2)
    given = documents((4, 9, 3), 0)[:kept]  # of the first step's batch
    batch = padded(given)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    alone = measure(module.model, batch, metrics=metrics, special_token_ids=[FIRST])
    assert monitor.last_record is not None
    compared = ("drift", "velocity")
    others = tuple(name for name in monitor.last_record if name.startswith(compared))
    assert_same(monitor.last_record, alone, but=others)


def test_a_run_on_batches_of_documents(tmp_path: Path) -> None:
    """All but importance: training's loss adds the documents' up, and their gradients with them."""
    monitor = GeometryMonitor(1, metrics=["entropy", "pattern", "cone", "importance"], source="batch")
    module = Packed()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, module, monitor, data=loader(1), steps=1)
    alone = measure(module.model, padded(documents((4, 9, 3), 0)), metrics=["entropy", "pattern", "cone"])
    assert monitor.last_record is not None
    assert_same(monitor.last_record, alone)
    assert any("its rows hold several documents" in str(w.message) for w in caught)
