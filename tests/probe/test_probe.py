"""The probe: what is kept of which calls, how it is divided and told apart."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_geo.observe.replay.undisturbed_run import Call, undisturbed
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.probe import Probe, probe_from
from lightning_geo.probe.recorder import CallRecorder


def call_of(rows: list[int], length: int = 6, model: str = "", pad: int = 0) -> ProbeCall:
    """Sequences by number: row ``n`` always holds the same tokens, right-padded."""
    lengths = torch.tensor([2 + row % 4 for row in rows])
    mask = torch.arange(length) < lengths[:, None]
    ids = (torch.tensor(rows)[:, None] * 7 + torch.arange(length)).where(mask, pad)
    return ProbeCall.of(model, Call((), {"input_ids": ids, "attention_mask": mask.long()}))


def rows_of(calls: list[ProbeCall]) -> list[int]:
    return [int(first) // 7 for call in calls for first in call.call.kwargs["input_ids"][:, 0]]


divisions = st.lists(st.integers(1, 4), min_size=1, max_size=6)


def divided(sizes: list[int], **options: Any) -> list[ProbeCall]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [call_of(list(range(a, a + n)), **options) for a, n in zip(starts, sizes, strict=True)]


@given(divisions, st.integers(6, 9), st.integers(0, 99), st.randoms(use_true_random=False))
def test_a_fingerprint_is_that_of_the_sequences_alone(
    sizes: list[int], length: int, pad: int, order: Any
) -> None:
    """Not of their order, their batches, how far they were padded or with what."""
    whole = Probe(divided([sum(sizes)]))
    calls = divided(sizes, length=length, pad=pad)
    order.shuffle(calls)
    assert Probe(calls).fingerprint == whole.fingerprint
    calls[0].call.kwargs["input_ids"][0, 1] += 1
    assert Probe(calls).fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda k: {**k, "input_ids": k["input_ids"].int()},
        lambda k: {"inputs": k["input_ids"], "attention_mask": k["attention_mask"]},
        lambda k: {**k, "extra": torch.zeros(3)},
        lambda k: {**k, "attention_mask": torch.ones_like(k["attention_mask"])},
    ],
)
def test_other_arguments_are_another_fingerprint(
    change: Callable[[dict[str, Tensor]], dict[str, Any]],
) -> None:
    call = call_of([0, 1, 2])
    assert (
        Probe([ProbeCall.of("", Call((), change(call.call.kwargs)))]).fingerprint != Probe([call]).fingerprint
    )


def test_without_a_mask_padding_is_content() -> None:
    calls = [ProbeCall.of("", Call((torch.zeros(2, n),))) for n in (3, 4)]
    assert Probe(calls[:1]).fingerprint != Probe(calls[1:]).fingerprint


@given(divisions, st.integers(1, 5))
def test_ranks_share_every_sequence_once(sizes: list[int], world: int) -> None:
    probe = Probe(divided(sizes))
    shares = [probe.share(rank, world) for rank in range(world)]
    assert sorted(row for share in shares for row in rows_of(share.calls)) == list(range(sum(sizes)))
    for share in shares:  # and all ranks meet all layers
        assert share.calls or share.uncounted


def test_calls_that_cannot_be_divided_go_round_whole() -> None:
    packed = [ProbeCall.of("", Call((torch.full((5,), n), torch.zeros(2)))) for n in range(3)]
    shares = [Probe(packed).share(rank, 2) for rank in range(2)]
    assert [[int(c.call.args[0][0]) for c in share.calls] for share in shares] == [[0, 2], [1]]
    assert packed[0].take(slice(1)) is packed[0]


@given(divisions, st.integers(1, 12))
def test_a_probe_is_cut_to_its_size_per_model(sizes: list[int], size: int) -> None:
    calls = [*divided(sizes, model="a"), *divided(sizes, model="b")]
    probe = Probe.joined([calls], size)
    assert probe is not None
    expected = list(range(min(size, sum(sizes))))
    assert [rows_of(probe.only([model]).calls) for model in probe.models] == [expected, expected]
    assert Probe.joined([[]], size) is None


def test_state_is_plain_and_comes_back_equal() -> None:
    call = ProbeCall.of(
        "m", Call((torch.ones(2, 3), None, [1, 2.5]), {"flag": True, "deep": {"x": torch.ones(2)}})
    )
    probe, file = Probe([call, call_of([1, 2])]), io.BytesIO()
    torch.save(probe.state_dict(), file)
    file.seek(0)
    back = Probe.from_state_dict(torch.load(file, weights_only=True))
    assert back.fingerprint == probe.fingerprint
    assert back.models == probe.models
    assert back.calls[0].call.args[1:] == (None, [1, 2.5])


# -- recording


class Model(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Takes anything."""


def compiled() -> nn.Module:
    model = Model()
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("build", [Model, compiled])
def test_a_recorder_keeps_copies_of_the_first_sequences(build: Callable[[], nn.Module]) -> None:
    model = build()
    recorder = CallRecorder({"m": model}, 5)
    recorder.start()
    recorder.start()  # once is enough
    batch = torch.arange(6.0).reshape(3, 2).requires_grad_()
    with torch.inference_mode():
        model(batch.detach().clone(), flag=None)
    model(batch, more={"x": batch.detach() + 10})
    with torch.no_grad():
        batch.zero_()
    model(batch)
    recorder.stop()
    recorder.stop()
    model(batch)
    first, second = recorder.calls
    assert [call.rows for call in recorder.calls] == [3, 2]
    assert torch.equal(second.call.kwargs["more"]["x"], torch.arange(4.0).reshape(2, 2) + 10)
    for tensor in (*first.call.tensors(), *second.call.tensors()):
        assert not tensor.is_inference()
        assert not tensor.requires_grad
    assert torch.equal(first.call.args[0], torch.arange(6.0).reshape(3, 2))
    assert not model._forward_pre_hooks


def test_what_cannot_be_kept_or_is_a_replay_is_passed_over() -> None:
    model = Model()
    recorder = CallRecorder({"m": model}, 5)
    recorder.start()
    model(object())
    with undisturbed(model):
        model(torch.ones(1, 1))
    model(OrderedDict(x=torch.ones(1, 2)), [3, "text"], {"deep": (None, 1.5)})
    recorder.stop()
    assert list(recorder.passed_over) == ["m"]
    assert recorder.passed_over["m"].startswith(
        "Expected `args` to be something that a probe can keep but an argument of type object cannot be "
        "kept: pass tensors"
    )
    (call,) = recorder.calls
    assert type(call.call.args[0]) is dict
    assert call.call.args[1:] == ([3, "text"], {"deep": (None, 1.5)})


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("build", [Model, compiled])
def test_recorders_stop_in_any_order(build: Callable[[], nn.Module], first: int) -> None:
    model = build()
    original = model._compiled_call_impl
    recorders = [CallRecorder({"m": model}, 9) for _ in range(2)]
    for recorder in recorders:
        recorder.start()
    model(torch.ones(1, 1))
    recorders[first].stop()
    model(torch.ones(1, 1))
    recorders[1 - first].stop()
    assert [len(r.calls) for r in (recorders[first], recorders[1 - first])] == [1, 2]
    assert model._compiled_call_impl is original
    assert not model._forward_pre_hooks


def test_a_call_that_lightning_borrows_is_not_the_models() -> None:
    """Under DDP the whole training step runs through the LightningModule's ``forward``."""
    model = Model()

    def wrapped_forward(*args: Any) -> None:
        pass

    recorder = CallRecorder({"": model}, 9)
    recorder.start()
    model.forward = wrapped_forward  # type: ignore[method-assign]
    model(torch.ones(1, 1))
    del model.forward
    model(torch.ones(1, 2))
    recorder.stop()
    assert [tuple(call.call.args[0].shape) for call in recorder.calls] == [(1, 2)]


# -- given


@pytest.mark.parametrize(
    ("given_probe", "size", "rows"),
    [
        (torch.ones(9, 2), 4, [9]),  # a batch is taken whole
        ({"x": torch.ones(3, 2)}, 4, [3]),
        ((torch.ones(3, 2), torch.ones(3)), 4, [3]),
        (DataLoader(torch.ones(9, 2), batch_size=3), 4, [3, 1]),  # type: ignore[arg-type]
        (DataLoader(torch.ones(2, 2), batch_size=3), 4, [2]),  # type: ignore[arg-type]
    ],
)
def test_a_given_probe_is_a_batch_or_what_yields_some(given_probe: Any, size: int, rows: list[int]) -> None:
    assert [ProbeCall.of("", call).rows for call in probe_from(given_probe, size)] == rows


def test_a_given_probe_must_be_made_of_what_can_be_kept() -> None:
    with pytest.raises(TypeError, match="an argument of type object cannot be kept"):
        probe_from([object()], 4)
