"""Training is bit-identical with and without the monitor, and nothing is left behind in model or process."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_geo import GeometryMonitor
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import is_of_batch, select, spec_of
from lightning_geo.storage.record import GeometryRecord
from support.lit import Lit, fit, loader
from support.same import assert_same, assert_same_records, outcome, records, traces
from support.trained import CASES, checkpointed, compiled, one_layer

#: Two epochs of 6 batches but for one: records before the first and the last batch of the first, within the
#: second after a validation, and at the end of training.
STEPS, EVERY = 11, 5


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # for a line in its log, the compiler empties the processor's caches and times how long its guards take
    monkeypatch.setattr(torch._dynamo.guards, "profile_guard_manager", lambda *_: 0.0, raising=False)
    yield
    if torch._dynamo.utils.counters:  # something was compiled
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()


#: Where the model's recorded call has no loss of its own: it is given no labels, or returns logits alone.
WITHOUT_LOSS = ("compiled loss",)
#: Where training's own backward does not show the gradient of heads' outputs.
WITHOUT_GRADIENT = ("checkpointing, reentrant", "encoder", "frozen teacher", "compiled", "compiled in place",
                    "compiled by inductor", "compiled blocks", "compiled forward", "compiled and not",
                    "compiled root")  # fmt: skip
#: Where the way in which the probe is recorded could matter.
BOTH_WAYS = ("bert", "accumulation", "manual", "writes", "compiled in place")
INDUCTOR = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a compiler"
)


def marks(case: str) -> list[pytest.MarkDecorator]:
    """What a case waits for, and needs."""
    return [pytest.mark.compiles] * ("compiled" in case) + [INDUCTOR] * ("inductor" in case)


#: case, source, whether the sanity check is there to record the probe from
RUNS = [
    pytest.param(case, source, sanity, marks=marks(case))
    for case in CASES
    for source, sanity in (("probe", True), ("probe", False), ("batch", False))
    if source == "batch" or sanity or case in BOTH_WAYS
]
BARE: dict[tuple[str, bool], dict[str, Any]] = {}


def train(directory: Path, case: str, sanity: bool, *monitors: GeometryMonitor) -> dict[str, Any]:
    make, options = CASES[case]
    module = make()
    plain = getattr(module, "_orig_mod", module)
    before = traces(plain)
    options = {"steps": STEPS, "num_sanity_val_steps": 2 * sanity, **options}
    data, validation = loader(24, shuffle=True), loader(8, seed=9)
    runner = fit(directory, module, *monitors, data=data, validation=validation, **options)
    assert traces(plain) == before
    return outcome(runner, plain)


def bare(directory: Path, case: str, sanity: bool) -> dict[str, Any]:
    """The run without a monitor; Lightning's sanity check changes nothing but what forward itself does."""
    key = case, sanity and case in ("writes", "draws")
    if key not in BARE:
        BARE[key] = train(directory, case, sanity)
    return BARE[key]


@pytest.mark.parametrize(("case", "source", "sanity"), RUNS)
def test_training_is_untouched(case: str, source: Any, sanity: bool, tmp_path: Path) -> None:
    # nothing of it can be seen, which is said, or raised if strict
    sealed = case == "compiled as a whole" and source == "batch"
    monitor = GeometryMonitor(EVERY, source=source, probe_size=6, strict=not sealed, special_token_ids=[1])
    assert_same(train(tmp_path, case, sanity, monitor), bare(tmp_path, case, sanity))
    steps = 2 * STEPS if case == "manual" else STEPS
    last = None if monitor.last_record is None else monitor.last_record.step
    assert last == (None if sealed else steps if source == "probe" else EVERY * ((steps - 1) // EVERY))


@pytest.mark.slow
def test_several_monitors_disturb_neither_training_nor_each_other(tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "batch": {"source": "batch"}, "probe": {"probe_size": 12}, "small": {"probe_size": 3}
    }  # fmt: skip
    alone = {}
    for name in options:
        monitor = GeometryMonitor(3, name=name, strict=True, special_token_ids=[1], **options[name])
        train(tmp_path / name, "accumulation", False, monitor)
        alone[name] = records(tmp_path / name)
    for order in (list(options), list(options)[::-1]):
        monitors = [
            GeometryMonitor(3, name=name, strict=True, special_token_ids=[1], **options[name])
            for name in order
        ]
        outcome = train(tmp_path / order[0] / "all", "accumulation", False, *monitors)
        assert_same(outcome, bare(tmp_path, "accumulation", False))
        for name in order:
            assert_same_records(records(tmp_path / order[0] / "all", name), alone[name])


def test_a_shuffling_dataloader_as_probe_draws_nothing(tmp_path: Path) -> None:
    monitor = GeometryMonitor(
        EVERY, probe=loader(9, shuffle=True, seed=5), strict=True, special_token_ids=[1]
    )
    assert_same(train(tmp_path, "bert", False, monitor), bare(tmp_path, "bert", False))


@pytest.mark.parametrize("source", ["probe", "batch"])
@pytest.mark.parametrize("case", [pytest.param(case, marks=marks(case)) for case in CASES])
def test_every_family_leaves_training_untouched(case: str, source: Any, tmp_path: Path) -> None:
    """Backwards of our own and hooks in training's, projections told from what runs, weights kept."""
    whole = case == "compiled as a whole"
    monitor = GeometryMonitor(
        EVERY, metrics=sorted({spec.family for spec in CATALOG.values()}), source=source, probe_size=6,
        importance_every_n_samples=1, weights_every_n_samples=1, special_token_ids=[1],
        strict=not (whole and source == "batch"),
    )  # fmt: skip
    assert_same(train(tmp_path, case, whole, monitor), bare(tmp_path, case, whole))
    if whole and source == "batch":
        assert monitor.last_record is None  # sealed
        return
    assert monitor.last_record is not None
    measured = {spec_of(key.rpartition("/")[2]).family for key in monitor.last_record}
    unknown = WITHOUT_LOSS if source == "probe" else WITHOUT_GRADIENT
    assert {"weights", "projection", "score_spectra", "gates"} <= measured
    assert ("importance" in measured) is (case not in unknown)


#: Of BERTs; the untouched training above is of a model that takes the compiler less time.
SAME_NUMBERS: dict[str, Callable[[], nn.Module]] = {
    **{f"compiled {how}": functools.partial(compiled, how, build=one_layer)
       for how in ("wrapped", "in place", "blocks", "forward")},
    "checkpointing": lambda: checkpointed(False, layers=1),
    "checkpointing, reentrant": lambda: checkpointed(True, layers=1),
}  # fmt: skip


def record(
    directory: Path, build: Callable[[], nn.Module], source: Any
) -> tuple[dict[str, Any], list[GeometryRecord]]:
    """What a run made and what was recorded of it."""
    # beside a probe, the training forward of a compiled model is not looked at
    names = [name for name in select() if source == "batch" or not is_of_batch(name)]
    monitor = GeometryMonitor(2, metrics=names, source=source, strict=True, special_token_ids=[1])
    module = Lit(build)
    runner = fit(directory, module, monitor, steps=4, accumulate_grad_batches=2)
    made = {name.replace("._orig_mod", ""): value for name, value in outcome(runner, module).items()}
    return made, records(directory)


PLAIN: dict[str, tuple[dict[str, Any], list[GeometryRecord]]] = {}


def plain_record(directory: Path, source: str) -> tuple[dict[str, Any], list[GeometryRecord]]:
    """The same of the model as it is, once."""
    if source not in PLAIN:
        PLAIN[source] = record(directory, one_layer, source)
    return PLAIN[source]


@pytest.mark.parametrize("how", [pytest.param(how, marks=marks(how)) for how in SAME_NUMBERS])
@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_model_that_computes_the_same_in_another_way_gives_the_same_records(
    how: str, source: Any, tmp_path: Path
) -> None:
    """And the same training."""
    ours, theirs = record(tmp_path, SAME_NUMBERS[how], source), plain_record(tmp_path / "plain", source)
    assert_same(ours[0], theirs[0])
    assert len(ours[1]) == (3 if source == "probe" else 2)
    assert_same_records(ours[1], theirs[1])
