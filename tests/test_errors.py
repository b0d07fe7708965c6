"""``except GeometryError`` catches what the package raises, and so does the builtin that says the same."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import lightning_geo as geo
from lightning_geo.utils import errors

PACKAGE = Path(errors.__file__).parents[1]

BUILTIN = {"ValueError", "TypeError", "KeyError", "FileNotFoundError", "LookupError", "RuntimeError"}

_FAULT = "a fault of this package's own, which no argument causes"

#: Where a builtin error is raised all the same: file, class -> why.
ALLOWED = {
    ("dashboard/plugin.py", "LookupError"): "answered with 404, as is any other",
    ("measurement/sample_statistics.py", "LookupError"): _FAULT,
    ("monitor/sampler.py", "LookupError"): "why a sample was dropped; the monitor catches it",
    ("utils/device_time.py", "RuntimeError"): _FAULT,
    ("utils/views.py", "LookupError"): _FAULT,
}


def raised(source: str) -> Iterator[str]:
    """Names of the classes that a source raises."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise):
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(error, ast.Name):
                yield error.id


def test_no_builtin_error_is_raised() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for name in BUILTIN.intersection(raised(path.read_text()))
    }
    assert found == ALLOWED.keys()


def test_a_builtin_error_would_be_found() -> None:
    assert [*raised("def f(x):\n    if not x:\n        raise ValueError(f'{x}') from None")] == ["ValueError"]
    assert [*raised("try:\n    f()\nexcept OSError:\n    raise KeyError")] == ["KeyError"]
    assert [*raised("raise errors.RunError('x')"), *raised("raise")] == []


def model() -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(16, nhead=2, batch_first=True)
    return torch.nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)


def history() -> geo.GeometryHistory:
    return geo.GeometryHistory([geo.GeometryRecord({"encoder": {"entropy": torch.ones(2, 4).numpy()}})])


INPUTS = torch.ones(2, 5, 16)
CALLS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "interval": (lambda: geo.GeometryMonitor(every_n_steps=0), ValueError, "`every_n_steps` .* got 0"),
    "metrics": (lambda: geo.GeometryMonitor(metrics=["nope"]), ValueError, "`metrics` .* got 'nope'"),
    "no metrics": (lambda: geo.GeometryMonitor(metrics=3), TypeError, "`metrics` .* names .* got int"),
    "schedule": (lambda: geo.GeometryMonitor(schedule=3), TypeError, "`schedule` .* callable .* got int"),
    "alerts": (lambda: geo.GeometryMonitor(alerts=7), TypeError, r"`alerts` .* Alerts\(…\), but got 7"),
    "callback": (lambda: geo.GeometryCallback(every_n_steps=0), ValueError, "`every_n_steps` .* got 0"),
    "model without attention": (
        lambda: geo.measure(torch.nn.Linear(2, 2), torch.ones(1, 2)), ValueError, "`model` .* attention"
    ),
    "no model": (lambda: geo.measure(3, INPUTS), TypeError, "`model` .* torch.nn.Module but got int"),
    "pattern": (lambda: geo.measure(model(), INPUTS, layers="("), ValueError, "`layers` .* none: missing"),
    "layers": (lambda: geo.measure(model(), INPUTS, layers=[]), TypeError, r"`layers` .* got \[\]"),
    "notify": (lambda: geo.Alerts(notify=3), ValueError, "`notify` .* callable .* got 3"),
    "rules": (lambda: geo.Alerts(rules=3), TypeError, "`rules` .* list .* got int"),
    "a rule": (lambda: geo.Alerts(rules=[3]), TypeError, r"`rules` .* Rule\(…\), but got int"),
    "change": (lambda: geo.Alerts(change=3), ValueError, "`change` .* mapping .* got 3"),
    "changed rule": (lambda: geo.Alerts(change={"nope": {}}), ValueError, "`change` .* got 'nope'"),
    "silence": (lambda: geo.Alerts(silence=3), ValueError, "`silence` .* list .* got 3"),
    "file": (lambda: geo.Alerts(file=3), TypeError, "`file` .* path .* got int"),
    "no file": (lambda: geo.Alerts(file="/nope"), ValueError, "Cannot read '/nope'"),
    "level": (lambda: geo.Level(), ValueError, "`at_least` or `at_most`, but got neither"),
    "window": (lambda: geo.Departure(window=3), ValueError, "`window` .* of at least 8 but got 3"),
    "spreads": (lambda: geo.Departure(spreads="a"), ValueError, "`spreads` .* above 0 but got 'a'"),
    "message": (lambda: geo.Rule("a", ("b",), geo.Level(at_most=1), 3), ValueError, "`message` .* got 3"),
    "no records": (lambda: geo.GeometryHistory([]), ValueError, "`records` .* at least one sample"),
    "records": (lambda: geo.GeometryHistory([3]), TypeError, "`records` .* GeometryRecords but got int"),
    "key": (lambda: history()["nope"], KeyError, "^No metric 'nope'. Did you mean"),
    "number as key": (lambda: history()[0], KeyError, r"name of a metric but got 0.* `record\(index\)`"),
    "matrix": (lambda: history().matrices("nope"), KeyError, "^No matrix 'nope'"),
    "patterns": (lambda: history().patterns(), KeyError, "^No attention patterns"),
    "watched": (lambda: geo.watch(3), TypeError, "`model` .* torch.nn.Module but got int"),
    "logger": (lambda: geo.watch(model(), logger=3), TypeError, "`logger` .* got int"),
    "tensor": (lambda: geo.functional.cone_index(3), TypeError, "`x` .* torch.Tensor but got int"),
    "shape": (lambda: geo.functional.cone_index(torch.ones(3)), ValueError, r"`x` .* got \[3\]"),
    "nowhere": (lambda: geo.load_history("/nope"), FileNotFoundError, "`path` .* '/nope' does not exist"),
    "no run": (lambda: geo.load_history(PACKAGE), FileNotFoundError, "`path` .* holds "),
    "no path": (lambda: geo.load_history(3), TypeError, "`path` .* URL but got int"),
    "no protocol": (lambda: geo.load_history("nope://runs"), ValueError, "Cannot open 'nope://runs'"),
    "no history": (lambda: geo.compare(1, 2), TypeError, "`a` .* GeometryHistory, .* got int"),
    "second history": (lambda: geo.compare(history(), 2), TypeError, "`b` .* GeometryHistory, .* got int"),
    "compared": (lambda: geo.compare(history(), history(), ["nope"]), ValueError, "`metrics` .* 'nope'"),
    "step": (lambda: geo.compare(history(), history(), step="a"), TypeError, "`step` .* got str"),
    "diagnosed": (lambda: geo.diagnose(3), TypeError, "`history` .* GeometryHistory, .* got int"),
    "planned": (lambda: geo.pruning_plan(3), TypeError, "`history` .* GeometryHistory, .* got int"),
    "fraction": (lambda: geo.pruning_plan(history(), 3), ValueError, "`fraction` .* got 3"),
    "no importance": (lambda: geo.pruning_plan(history()), ValueError, "no metric `importance`"),
    "evaluated": (lambda: geo.evaluate_plan(3, [], None, len), TypeError, "`model` .* got int"),
    "plan": (lambda: geo.evaluate_plan(model(), [], 3, len), TypeError, "`plan` .* PruningPlan, .* got int"),
    "applied": (lambda: geo.apply_plan(model(), 3, INPUTS), TypeError, "`plan` .* PruningPlan, .* got int"),
    "explained": (lambda: geo.explain(3, INPUTS, 0), TypeError, "`model` .* got int"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_geometry_errors(name: str) -> None:
    call, builtin, message = CALLS[name]
    with pytest.raises(geo.GeometryError, match=message) as caught:
        call()
    assert isinstance(caught.value, builtin)


def test_errors_reach_other_ranks_as_they_are() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            error = pickle.loads(pickle.dumps(kind("an argument's 'name'")))
            assert (type(error), str(error)) == (kind, "an argument's 'name'")
