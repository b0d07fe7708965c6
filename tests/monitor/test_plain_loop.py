"""``watch``: a loop of one's own, which tells no more than that a step is done."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from lightning_fabric.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lightning_geo import Alerts, GeometryMonitor, Level, Rule, load_history, watch
from lightning_geo.monitor.plain_loop import LoopMonitor
from support.lit import Classifier, bert, fit, loader
from support.same import traces

METRICS = ["entropy", "subspace"]


def train(
    model: nn.Module, geometry: LoopMonitor, *, steps: int = 4, optimizer: Any = None, **loop: Any
) -> None:
    """A loop of one's own."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), 1e-2)
    context, before = loop.get("context", lambda: torch.enable_grad()), loop.get("before", lambda step: None)
    with geometry:
        for step, batch in zip(range(steps), loader(), strict=False):
            before(step)
            with context():
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            geometry.step()


def made(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return bert(**options).train()


def messages(caught: list[warnings.WarningMessage]) -> str:
    return "\n".join(str(w.message) for w in caught if "GeometryMonitor" in str(w.message))


def test_the_precision_of_the_loop_is_that_of_the_replays(tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, metrics=METRICS, strict=True)
    fit(tmp_path, Classifier(), monitor, steps=3, precision="bf16-mixed")
    theirs = load_history(tmp_path / "lightning_geo" / "version_0")
    model = made()
    torch.manual_seed(1)
    geometry = watch(model, every_n_steps=1, metrics=METRICS, logdir=tmp_path / "loop", strict=True)
    train(model, geometry, steps=3, context=lambda: torch.autocast("cpu", torch.bfloat16))
    ours = load_history(tmp_path / "loop")
    assert ours.steps.tolist() == [0, 1, 2, 3]
    full = made()
    torch.manual_seed(1)
    train(full, watch(full, every_n_steps=1, metrics=METRICS, logdir=tmp_path / "full"), steps=3)
    for key in theirs:
        np.testing.assert_allclose(ours[key][0], theirs[key][0], atol=1e-6, err_msg=key)
    other = load_history(tmp_path / "full")
    assert np.abs(other["effective_rank.query"][0] - ours["effective_rank.query"][0]).max() > 1e-4


class Own:
    """An optimizer of another package: torch knows nothing of its steps."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())

    def step(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def test_an_update_that_nobody_announces_costs_a_step(tmp_path: Path) -> None:
    model = made(dropout=0.0)
    geometry = watch(model, every_n_steps=2, metrics=["entropy", "update_size"], logdir=tmp_path / "own")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, geometry, steps=5, optimizer=Own(model))
    assert "a sample was taken a step late" in messages(caught)
    ours = load_history(tmp_path / "own")
    assert ours.steps.tolist() == [1, 3, 5]
    other = made(dropout=0.0)
    whole = watch(other, every_n_steps=1, metrics=["entropy"], logdir=tmp_path / "sgd", strict=True)
    train(other, whole, steps=5, optimizer=torch.optim.SGD(other.parameters(), 0.01))
    theirs = load_history(tmp_path / "sgd")
    np.testing.assert_allclose(ours["entropy"], theirs["entropy"][[1, 3, 5]], atol=1e-6)


def test_an_optimizer_that_calls_the_model_itself(tmp_path: Path) -> None:
    model = made(dropout=0.0)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    batch = next(iter(loader()))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(**batch).loss
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*a step late.*")
        with watch(model, every_n_steps=2, metrics=METRICS, logdir=tmp_path, strict=True) as geometry:
            for _ in range(4):
                optimizer.step(closure)
                geometry.step()
    history = load_history(tmp_path)
    assert history.steps.tolist() == [1, 2, 4]
    assert traces(model) == []


def test_what_checkpointing_calls_again_is_not_counted(tmp_path: Path) -> None:
    for name in ("plain", "checkpointed"):
        model = made(dropout=0.0)
        if name == "checkpointed":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        train(model, watch(model, source="batch", metrics=["entropy"], logdir=tmp_path / name), steps=2)
    ours, theirs = (load_history(tmp_path / name) for name in ("checkpointed", "plain"))
    np.testing.assert_allclose(ours["entropy"], theirs["entropy"], atol=1e-6)
    assert ours.record(0).coverage == theirs.record(0).coverage


class Behind(nn.Module):
    """A model that is given what a trained layer made."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = made()

    def forward(self, inputs_embeds: Tensor, labels: Tensor) -> Any:
        return self.bert(inputs_embeds=inputs_embeds, labels=labels)


def test_a_model_behind_a_trained_layer_is_not_replayed(tmp_path: Path) -> None:
    model, layer = Behind(), nn.Embedding(60, 32)
    optimizer = torch.optim.SGD([*model.parameters(), *layer.parameters()], 0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch(model, every_n_steps=1, metrics=METRICS, logdir=tmp_path) as geometry:
            for _, batch in zip(range(3), loader(), strict=False):
                model(layer(batch["input_ids"]), batch["labels"]).loss.backward()
                optimizer.step()
                geometry.step()
    assert "its inputs depend on parameters" in messages(caught)
    history = load_history(tmp_path)
    assert history.steps.tolist() == [1, 2]
    assert "drift.query" not in history


# -- where records go


def test_what_it_logs_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    run = wandb.init(dir=tmp_path, project="p")
    writer, table = SummaryWriter(tmp_path / "writer"), CSVLogger(tmp_path, "table")
    model = made()
    train(model, watch(model, every_n_steps=2, metrics=METRICS, logger=[writer, run, table], strict=True))
    writer.add_scalar("mine", 1.0, 9)  # it is open
    writer.close()
    assert "geometry/entropy" in dict(run.summary)
    run.finish()
    table.finalize("success")
    history = load_history(tmp_path / "writer")
    assert history.steps.tolist() == [0, 2, 4]
    events = EventAccumulator(str(tmp_path / "writer")).Reload()
    logged = [event.value for event in events.Scalars("geometry/entropy")]
    np.testing.assert_allclose(logged, history["entropy"].mean((1, 2)), rtol=1e-6)
    assert "geometry/entropy" in Path(table.log_dir, "metrics.csv").read_text()


def test_without_a_place_a_record_has_a_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        model = made()
        train(model, watch(model, metrics=["entropy"], strict=True), steps=1)
        assert load_history(tmp_path / "lightning_geo" / f"version_{number}").steps.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"logdir": "a", "logger": []}, ValueError, "`logdir` or `logger` but got both"),
        ({"logger": "runs"}, TypeError, "`logger` to be a SummaryWriter.*but got str"),
        ({"layers": "none of them"}, ValueError, "`layers` to match"),
        ({"module": "berd"}, ValueError, "`module` to name a module"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], kind: type[Exception], said: str) -> None:
    model = made()
    with pytest.raises(kind, match=said), watch(model, **given):
        pass
    assert traces(model) == []


@pytest.mark.wrong_arguments
def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"`model` to be a torch\.nn\.Module but got str"):
        watch("bert")  # type: ignore[arg-type]


# -- steps


def test_steps_that_accelerate_skips_are_none(tmp_path: Path) -> None:
    model = made()
    helper = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, batches = helper.prepare(model, torch.optim.AdamW(model.parameters(), 1e-2), loader())
    with watch(model, every_n_steps=1, metrics=METRICS, logdir=tmp_path, strict=True) as geometry:
        for _, batch in zip(range(6), batches, strict=False):
            with helper.accumulate(model):
                helper.backward(model(**batch).loss)
                optimizer.step()
                optimizer.zero_grad()
                geometry.step()
    assert load_history(tmp_path).steps.tolist() == [0, 1, 2, 3]


def test_a_finding_asks_to_stop(tmp_path: Path) -> None:
    rule = Rule("always", ("entropy",), Level(at_least=0.0), "{where} have entropy.", next=("Go on.",))
    model = made()
    geometry = watch(model, every_n_steps=1, logdir=tmp_path, alerts=Alerts([rule], stop="note"))
    steps, optimizer = 0, torch.optim.SGD(model.parameters(), 0.01)
    with geometry:
        for batch in loader():
            model(**batch).loss.backward()
            optimizer.step()
            geometry.step()
            steps += 1
            if geometry.should_stop:
                break
    assert steps < 8
    assert geometry.metrics["geometry/entropy"] > 0


@pytest.mark.parametrize("within", [True, False])
def test_the_state_is_loaded_before_the_context_or_in_it(within: bool, tmp_path: Path) -> None:
    first, model = tmp_path / "first", made()
    geometry = watch(model, every_n_steps=2, metrics=METRICS, logdir=first, strict=True)
    train(model, geometry, steps=3)
    state = geometry.state_dict()
    again = watch(model, every_n_steps=2, metrics=METRICS, logdir=tmp_path / "second", strict=True)
    if not within:
        again.load_state_dict(state)

    def load(step: int) -> None:
        if within and step == 0:
            again.load_state_dict(state)

    train(model, again, steps=3, before=load)
    second = load_history(tmp_path / "second")
    assert second.steps.tolist() == [4, 6]
    assert {*second.metadata["probe_fingerprint"]} == {*load_history(first).metadata["probe_fingerprint"]}
    assert np.nanmin(second["drift.query"]) > 0


def test_a_loop_that_ends_before_the_update_has_no_sample_of_that_step(tmp_path: Path) -> None:
    model = made()
    with watch(model, every_n_steps=1, metrics=["entropy"], logdir=tmp_path, strict=True) as geometry:
        model(**next(iter(loader()))).loss.backward()
    assert geometry.last_record is None
    assert traces(model) == []


def test_a_checkpoint_that_nobody_could_save_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"Expected `alerts` without `checkpoint`.* but got 'warning'"):
        watch(torch.nn.Linear(2, 2), alerts=Alerts(checkpoint="warning"))
