"""The tap in the presence of others: errors, other taps, replays, and what it leaves."""

from __future__ import annotations

import gc
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils.data import default_collate

from lightning_geo.observe import AttentionCall, CallKey, Tap
from lightning_geo.observe.interception import INTERCEPTION
from lightning_geo.observe.replay.undisturbed_run import undisturbed
from support.lit import bert, sequences
from support.notes import Notes
from support.same import traces

ONCE = [
    note
    for i in range(2)
    for note in (
        f"bert.encoder.layer.{i}.attention.self#0",
        f"bert.encoder.layer.{i}.attention.self returned",
        f"bert.encoder.layer.{i} returned",
    )
]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return bert(dropout=0.0)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return default_collate(sequences(3))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _clean(model: nn.Module) -> Iterator[None]:
    yield
    assert traces(model) == []


def test_it_shows_attention_and_blocks_while_it_is_open(model: nn.Module, batch: dict[str, Tensor]) -> None:
    notes, tap = Notes(), Tap(model)
    model(**batch)
    with tap.open(notes):
        assert traces(nn.Module()) == []  # the process is as before until the model runs
        model(**batch)
        assert traces(nn.Module()) == []
        assert notes.seen == ONCE
        model(**batch)
    model(**batch)
    assert notes.seen == 2 * ONCE
    assert tap.called
    assert tap.takes_ids
    assert tap.seconds > 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_taps_close_in_any_order(model: nn.Module, batch: dict[str, Tensor], order: tuple[int, int]) -> None:
    notes, contexts = [Notes(), Notes()], []
    for note in notes:
        contexts.append(Tap(model).open(note))
        contexts[-1].__enter__()
    model(**batch)
    contexts[order[0]].__exit__(None, None, None)
    model(**batch)
    contexts[order[1]].__exit__(None, None, None)
    model(**batch)
    assert [notes[i].seen for i in order] == [ONCE, 2 * ONCE]


def test_it_overhears_no_replay_of_another(model: nn.Module, batch: dict[str, Tensor]) -> None:
    training, replay = Notes(), Notes()
    with Tap(model).open(training):
        with undisturbed(model), Tap(model).open(replay):
            model(**batch)
        assert (training.seen, replay.seen) == ([], ONCE)
        model(**batch)
    assert (training.seen, replay.seen) == (ONCE, ONCE)


def test_an_observer_that_fails_costs_the_model_nothing(model: nn.Module, batch: dict[str, Tensor]) -> None:
    tap = Tap(model)
    expected = model(**batch).loss
    with tap.open(Notes(fails=True)):
        assert model(**batch).loss.equal(expected)
        assert not INTERCEPTION._taps  # code after the model runs without our patches
    assert [str(failure) for failure in tap.failures] == ["no"]


@pytest.mark.parametrize("kind", ["plain", "chained", "attribute"])
def test_a_failure_that_is_kept_pins_no_activations(
    model: nn.Module, batch: dict[str, Tensor], kind: str
) -> None:
    """Not its own layer's, nor, by the frames above it, those of all layers."""
    kept: list[weakref.ref[Tensor]] = []

    class Failing(Notes):
        def attention(self, key: CallKey, call: AttentionCall) -> None:
            query = call.query
            assert query is not None
            kept.append(weakref.ref(query))
            if kind == "attribute":
                _ = query.no_such_attribute  # type: ignore[attr-defined]
            try:
                raise ValueError(f"no {query.shape}")
            except ValueError as error:
                if kind == "plain":
                    raise
                raise RuntimeError("no") from error

    def watch(module: nn.Module, args: object, result: Tensor) -> None:
        kept.append(weakref.ref(result))

    layers = model.bert.encoder.layer  # type: ignore[attr-defined, union-attr]
    handles = [layer.attention.self.query.register_forward_hook(watch) for layer in layers]
    tap, enabled = Tap(model), gc.isenabled()
    gc.disable()  # no cycle may hold them either
    try:
        with torch.no_grad(), tap.open(Failing()):
            model(**batch)
            model(**batch)
            assert len(tap.failures) == 1
            assert len(kept) == 5  # one call seen, and the two layers' queries twice
            assert [ref() for ref in kept] == [None] * 5
    finally:
        for handle in handles:
            handle.remove()
        if enabled:
            gc.enable()
    said = "".join(traceback.format_exception(tap.failures[0]))
    assert "in attention" in said  # its place is known all the same


def test_a_tap_that_failed_leaves_others_on(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Their functions, and modes that the model itself enters, are told in the same order as before."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    def enter(module: nn.Module, args: object) -> None:
        modes.append(Mode())
        modes[-1].__enter__()

    def leave(module: nn.Module, args: object, result: object) -> None:
        assert _get_current_function_mode() is modes[-1]
        modes.pop().__exit__(None, None, None)

    modes: list[Mode] = []
    layers = model.bert.encoder.layer  # type: ignore[attr-defined, union-attr]
    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    notes = Notes()
    with Tap(model).open(Notes(fails=True)), Tap(model).open(notes), Tap(model).open(Notes(fails=True)):
        model(**batch)
    for handle in handles:
        handle.remove()
    assert notes.seen == ONCE


@pytest.mark.parametrize("inside", ["bert.encoder.layer.1.attention", "bert.embeddings", ""])
def test_a_model_that_raises_is_observed_anew_the_next_time(
    model: nn.Module, batch: dict[str, Tensor], inside: str
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    notes = Notes()
    with Tap(model).open(notes):
        handle = model.get_submodule(inside).register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model(**batch)
        assert traces(nn.Module()) == []
        handle.remove()
        notes.seen.clear()
        model(**batch)
        assert notes.seen == ONCE


def test_a_closed_tap_holds_nothing_of_its_observer(model: nn.Module, batch: dict[str, Tensor]) -> None:
    notes, tap = Notes(), Tap(model)
    with tap.open(notes):
        model(**batch)
    observer = weakref.ref(notes)
    del notes
    gc.collect()
    assert observer() is None
    assert not tap.failures


def test_parts_that_run_alone_are_observed_but_the_model_was_not_called(
    model: nn.Module, batch: dict[str, Tensor]
) -> None:
    notes, tap = Notes(), Tap(model)
    with tap.open(notes):
        model.bert(batch["input_ids"], batch["attention_mask"])
    assert notes.seen == ONCE
    assert not tap.called


def test_gradients_are_those_of_the_model_alone(model: nn.Module, batch: dict[str, Tensor]) -> None:
    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**batch).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients()
    with Tap(model).open(Notes()):
        observed = gradients()
    assert all(ours.equal(theirs) for ours, theirs in zip(observed, expected, strict=True))
