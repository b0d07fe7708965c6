"""Registration of metrics from outside, and the entry points that lead to them."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from lightning_geo import register_metric
from lightning_geo.metrics import foreign
from lightning_geo.metrics.foreign import FOREIGN
from lightning_geo.metrics.registry import metric_function, reads_of
from lightning_geo.metrics.selection import select
from lightning_geo.utils.errors import ArgumentError
from support.registry import nothing_registered, register, spec_named


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    with nothing_registered():
        yield


def cell(factor: float) -> Callable[..., Any]:
    """A notebook's cell: each run makes another function of the same name."""

    def mine(entropy: Tensor) -> Tensor:
        return entropy * factor

    return mine


def test_a_cell_run_again_replaces_and_another_function_does_not() -> None:
    first, second = cell(1.0), cell(2.0)
    register("mine", first)
    register("mine", second)
    assert metric_function("mine") is second
    assert reads_of("mine") == ("entropy",)
    with pytest.raises(ArgumentError, match=r"'mine' is already computed by .*cell\.<locals>\.mine"):
        register("mine", lambda entropy: entropy)
    assert metric_function("mine") is second
    assert select(["mine"]) == ("mine",)
    assert "mine" not in select()
    with pytest.raises(ValueError, match=r"got 'mime'\. Did you mean 'mine'\?"):
        select("mime")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reads": ("entropi",)}, "`reads` to be quantities of one source"),
        ({"reads": ("entropy", "eigenvalues")}, "`reads` to be quantities of one source"),
        ({"reads": ("head_gradient",)}, "`reads` to be quantities of one source"),
        ({"reads": ()}, "`reads` to be quantities of one source"),
        ({"reads": ("key_mask",)}, "`reads` to include 'received'"),
        ({"reads": ("entropy",), "axes": ("layer",)}, "`axes`"),
        ({"reads": ("entropy",), "parts": ("query",)}, "`parts` to be empty"),
        ({"reads": ("eigenvalues",)}, "`parts` to be some of"),
        ({"reads": ("eigenvalues",), "parts": ("queri",)}, "`parts` to be some of"),
        ({"reads": ("received",), "summary": "max"}, "`summary`"),
        ({"reads": ("block_norms",), "self_attention": True}, "`self_attention`"),
        ({"reads": ("x",), "collector": object}, "`collector` to be a subclass of Collector"),
        ({"name": "entropy"}, "`name` to be new"),
    ],
)
def test_what_no_source_can_offer_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        register(options.pop("name", "mine"), lambda x: x, **options)
    assert FOREIGN == {}


def test_a_decorated_function_stays_as_it_is() -> None:
    function = cell(1.0)
    assert register_metric(spec_named("mine"), "entropy")(function) is function


def test_entry_points_are_imported_where_a_name_is_unknown_and_a_broken_one_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plugged-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        f"[{foreign.GROUP}]\nbroken = no_such_module\ngood = plugged_metrics\ntaken = plugged_taken\n"
    )
    define = "from support.registry import register\nregister({name!r}, lambda entropy: entropy)\n"
    (tmp_path / "plugged_metrics.py").write_text(define.format(name="plugged"))
    (tmp_path / "plugged_taken.py").write_text(define.format(name="entropy"))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.setattr(foreign, "_loaded", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(["entropy", "metric:cone"])  # built in: nothing is imported
    assert "plugged_metrics" not in sys.modules
    with pytest.warns(UserWarning, match="the entry point") as caught:
        assert select(["entropy", "plugged"])[-1] == "plugged"
    assert [str(w.message).partition(" failed")[0] for w in caught] == [
        f"lightning_geo: the entry point '{name}' ({module}) of the group 'lightning_geo.metrics'"
        for name, module in (("broken", "no_such_module"), ("taken", "plugged_taken"))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select("plugged") == ("plugged",)
    monkeypatch.setattr(foreign, "_loaded", False)
    FOREIGN.clear()
    monkeypatch.delitem(sys.modules, "plugged_metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning that is raised must not stop the run
        assert select("plugged") == ("plugged",)
