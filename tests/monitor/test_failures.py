"""What fails inside the monitor is said once with its cause, costs what it must, and never the training."""

from __future__ import annotations

import csv
import gc
import re
import resource
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from lightning_geo import GeometryMonitor, load_history
from lightning_geo.functional import cone_index
from lightning_geo.measurement import call_statistics
from lightning_geo.utils.errors import ArgumentTypeError
from support.failing_models import (
    ByMethod,
    Down,
    Extra,
    Headless,
    Strange,
    TrainOnly,
    Unkept,
    Unrecordable,
    poisoned,
)
from support.lit import Classifier, Lit, bert, fit, loader
from support.same import assert_same, outcome, traces

STEPS = 5


# -- failures inside


def failing_schedule(step: int) -> bool:
    if step == 3:
        raise ZeroDivisionError("step three")
    return True


@pytest.fixture
def measurement_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third attention call on."""
    calls = iter(range(10**6))
    original = call_statistics.attention

    def attend(*args: Any, **options: Any) -> Any:
        if next(calls) > 2:
            raise ArithmeticError("an unlucky number")
        return original(*args, **options)

    monkeypatch.setattr(call_statistics, "attention", attend)


@pytest.fixture
def measurement_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a function of the package, from the first attention call on: before training begins."""
    monkeypatch.setattr(call_statistics, "attention", lambda *_, **__: cone_index(3))


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process can grow beyond what three samples need."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_500, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# -- each is said once, training goes on, and what can be recorded is


def tensorboard_and(logger: Callable[..., pl.loggers.Logger]) -> Callable[[Path], list[Any]]:
    return lambda path: [logger(path, name="other"), TensorBoardLogger(path, name="board", version=0)]


@pytest.fixture
def blocked(tmp_path: Path) -> None:
    """There is a file where the record's directory should be."""
    (tmp_path / "lightning_geo").write_text("not a directory")


class Case:
    """A failure, what is said of it, and which samples are recorded all the same."""

    def __init__(
        self,
        said: str,
        error: type[Exception],
        samples: list[int],
        *,
        module: Callable[[], Lit] = Classifier,
        loggers: Callable[[Path], Any] = lambda _: False,
        fixture: str | None = None,
        also: str | None = None,
        **options: Any,
    ) -> None:
        self.said = [said] if also is None else [said, also]
        self.error, self.samples = error, samples
        self.module, self.loggers, self.fixture, self.options = module, loggers, fixture, options

    def fit(self, path: Path, module: Lit, *monitors: GeometryMonitor) -> dict[str, Any]:
        options: dict[str, Any] = {"steps": STEPS, "accumulate_grad_batches": 2}
        return outcome(fit(path, module, *monitors, logger=self.loggers(path), **options), module)

    def monitor(self, strict: bool) -> GeometryMonitor:
        default = {"every_n_steps": 1, "special_token_ids": [1], "strict": strict}
        return GeometryMonitor(**{**default, **self.options})


ALL = list(range(STEPS + 1))
IN_VAIN = "no attention was seen in 3 samples, so that no more are taken"
CASES = {
    "logger that raises": Case(
        "writing to Down: .* failed: ConnectionError: the server is down",
        ConnectionError, ALL, loggers=tensorboard_and(Down),
    ),
    "blocked directory": Case(
        "the record could not be opened: (FileExists|NotADirectory)Error", OSError, [], fixture="blocked"
    ),
    "full disk": Case(
        "writing to record: .* failed: OSError: .*File too large", OSError, [0, 1, 2], fixture="full_disk",
        loggers=lambda path: CSVLogger(path, name="other", version=0),
        also="closing record: .* failed: OSError: .*File too large",
    ),
    "NaN": Case(
        r"activations are not finite: FloatingPointError: NaN or .*layer\.1\.attention.*\(first at step 0",
        FloatingPointError, ALL, module=lambda: Lit(poisoned),
    ),
    "NaN, batch": Case(
        r"activations are not finite: FloatingPointError: NaN or .*layer\.1\.attention.*\(first at step 0",
        FloatingPointError, ALL[:-1], module=lambda: Lit(poisoned), source="batch",
    ),
    "failing measurement": Case(
        r"a sample was dropped: ArithmeticError: an unlucky number \(first at step 0, training goes on",
        ArithmeticError, [], fixture="measurement_fails",
    ),
    "failing measurement, batch": Case(
        "a sample was dropped: ArithmeticError: an unlucky number",
        ArithmeticError, [], fixture="measurement_fails", source="batch",
    ),
    "refused measurement": Case(
        "a sample was dropped: ArgumentTypeError: Expected `x` to be a torch.Tensor",
        ArgumentTypeError, [], fixture="measurement_is_refused",
    ),
    "refused measurement, batch": Case(
        "a sample was dropped: ArgumentTypeError: Expected `x` to be a torch.Tensor",
        ArgumentTypeError, [], fixture="measurement_is_refused", source="batch",
    ),
    "failing schedule": Case(
        r"`schedule` failed: ZeroDivisionError: step three \(first at step 3",
        ZeroDivisionError, [0, 1, 2, 4, 5], every_n_steps=None, schedule=failing_schedule,
    ),
    "no attention": Case(
        r"a sample was dropped: LookupError: no attention was seen in .*`module=`",
        LookupError, [], module=lambda: Lit(Headless), also=IN_VAIN,
    ),
    "no attention, batch": Case(
        r"a sample was dropped: LookupError: no attention was seen in .*`module=`",
        LookupError, [], module=lambda: Lit(Headless), source="batch", also=IN_VAIN,
    ),
    "unknown attention": Case(
        r"no attention could be observed in strange \(LinearAttention\): LookupError: It calls neither",
        LookupError, ALL, module=lambda: Lit(Strange),
    ),
    "model that cannot be replayed": Case(
        "a sample was dropped: NotImplementedError: made for training alone",
        NotImplementedError, [], module=lambda: Lit(TrainOnly),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_said_once_while_training_goes_on(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    bare = case.fit(tmp_path / "bare", case.module())
    if case.fixture is not None:
        request.getfixturevalue(case.fixture)
    monitor, module = case.monitor(strict=False), case.module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = case.fit(tmp_path, module, monitor)
    said = [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]
    assert len(said) == len(case.said), said
    assert all(re.match(f"GeometryMonitor: {e}", s) for e, s in zip(case.said, said, strict=True)), said
    assert_same(ours, bare)
    assert traces(module) == []
    places = [p for p in (tmp_path / "board" / "version_0", tmp_path / "other" / "version_0") if p.exists()]
    if case.samples:
        history = load_history((*places, tmp_path / "lightning_geo" / "version_0")[0])
        assert history.steps.tolist() == case.samples
    elif name != "blocked directory":  # the run says that the monitor was there, and why it has no sample
        there = r"has no sample\. GeometryMonitor 'geometry' dropped (\d+) of \1 samples"
        with pytest.raises(ValueError, match=there) as no:
            load_history(tmp_path / "lightning_geo" / "version_0")
        assert re.search(case.said[0].partition(": ")[2].partition(r" \(first")[0], str(no.value))
    if name == "full disk":  # and the other destination got all
        rows = list(csv.DictReader((places[0] / "metrics.csv").open()))
        assert [int(row["step"]) for row in rows if row["geometry/entropy"]] == ALL


@pytest.mark.parametrize("module", [lambda: ByMethod(bert), lambda: Unrecordable(Extra)])
def test_what_cannot_be_recorded_is_shown_by_its_step(module: Callable[[], Lit], tmp_path: Path) -> None:
    bare, watched = module(), module()
    expected = outcome(fit(tmp_path / "bare", bare, steps=STEPS), bare)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "GeometryMonitor")
        monitor = GeometryMonitor(1, special_token_ids=[1])
        assert_same(outcome(fit(tmp_path, watched, monitor, steps=STEPS), watched), expected)
    assert load_history(tmp_path / "lightning_geo" / "version_0").steps.tolist() == ALL
    assert traces(watched) == []


def test_without_a_call_that_begins_at_the_data_training_is_observed(tmp_path: Path) -> None:
    bare, watched = Unkept(Extra), Unkept(Extra)
    expected = outcome(fit(tmp_path / "bare", bare, steps=STEPS), bare)
    monitor = GeometryMonitor(1, special_token_ids=[1])
    said = 'nothing to replay that begins at the data: `source="batch"` is used.*type object cannot be kept'
    with pytest.warns(UserWarning, match=said):
        trainer = fit(tmp_path, watched, monitor, steps=STEPS)
    assert_same(outcome(trainer, watched), expected)
    steps = load_history(tmp_path / "lightning_geo" / "version_0").steps.tolist()
    assert steps == ALL[1:-1]
    assert traces(watched) == []


def test_NaN_costs_the_numbers_that_it_spoils_and_no_others(tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, special_token_ids=[1])
    with pytest.warns(UserWarning, match="not finite"):
        fit(tmp_path, Lit(poisoned), monitor, steps=1, data=loader(8), validation=loader(8))
    first = load_history(tmp_path / "lightning_geo" / "version_0").record(0)
    assert np.isfinite(first["entropy"]).all(1).tolist() == [True, True, False]
    assert np.isfinite(first["effective_rank.query"]).all(1).tolist() == [True, True, False]
    assert np.isfinite(first["effective_rank.value"]).all(1).tolist() == [True, False, False]
    assert np.isfinite(first["cone.output"]).tolist() == [True, False, False]
    assert np.isfinite(list(first.summaries().values())).all()


@pytest.mark.parametrize("name", CASES)
def test_strict_raises_and_cleans_up(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    if case.fixture is not None:
        request.getfixturevalue(case.fixture)
    module = case.module()
    with pytest.raises(case.error):
        case.fit(tmp_path, module, case.monitor(strict=True))
    assert traces(module) == []
    assert len(module.losses) < 2 * STEPS


class Unlucky(ArithmeticError):
    """Raised inside the monitor."""


@pytest.mark.parametrize("kind", ["probe", "batch", "importance"])
def test_what_failed_holds_no_frames_while_training_goes_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame holds the activations that it worked on, and those of all frames above it."""
    found: list[list[Unlucky]] = []

    def fail(*args: Any, **options: Any) -> Any:
        raise Unlucky("no")

    class Look(pl.Callback):
        def look(self, *args: Any, **options: Any) -> None:
            # by type: to ask a proxy for its class may raise, or import what it stands for
            everywhere = [x for x in gc.get_objects() if issubclass(type(x), Unlucky)]
            found.append([x for x in everywhere if x.__traceback__ is not None])

        on_train_batch_end = on_before_backward = on_before_optimizer_step = look

    if kind == "importance":
        options: dict[str, Any] = {"metrics": ["importance"], "loss_fn": fail}
    else:
        options = {"source": kind}
        monkeypatch.setattr(call_statistics, "attention", fail)
    with pytest.warns(UserWarning, match="Unlucky: no"):
        fit(tmp_path, Lit(bert), GeometryMonitor(1, **options), Look(), steps=2)
    assert len(found) >= 6
    assert not any(found)
