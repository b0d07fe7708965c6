"""What TensorBoard meets at its start: it must never fail because of us."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from tensorboard.plugins.base_plugin import TBContext

import lightning_geo
from dashboard.providers import write_run
from lightning_geo.dashboard.loader import GeometryLoader
from lightning_geo.dashboard.metadata import PLUGIN
from lightning_geo.storage import events
from support.records import make_record

ROOT = Path(lightning_geo.__file__).parents[1]


def test_tensorboard_finds_the_loader() -> None:
    try:
        installed = distribution("lightning-geo")
    except PackageNotFoundError:
        pytest.skip("lightning-geo is not installed here, so TensorBoard cannot find it")
    points = {p.name: p for p in installed.entry_points if p.group == "tensorboard_plugins"}
    assert points[PLUGIN].load() is GeometryLoader


def test_the_plugin_has_the_name_under_which_records_are_stored() -> None:
    assert PLUGIN == events.PLUGIN


def test_every_sample_is_kept_unless_the_user_says_otherwise() -> None:
    for given, kept in (({}, 0), ({PLUGIN: 50}, 50), ({"images": 3}, 0)):
        flags = argparse.Namespace(samples_per_plugin=dict(given))
        GeometryLoader().fix_flags(flags)
        assert flags.samples_per_plugin == {**given, PLUGIN: kept}


@pytest.mark.parametrize("flags", [{}, {"samples_per_plugin": None}, {"samples_per_plugin": "x=1"}])
def test_flags_of_another_tensorboard_are_left_alone(flags: dict[str, object]) -> None:
    namespace = argparse.Namespace(**flags)
    GeometryLoader().fix_flags(namespace)
    assert vars(namespace) == flags


@pytest.mark.parametrize("broken", ["lightning_geo.dashboard.plugin", "lightning_geo.dashboard.samples"])
def test_a_plugin_that_cannot_be_imported_is_left_out(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lightning_geo.dashboard.plugin", raising=False)
    monkeypatch.setitem(sys.modules, broken, None)  # importing it raises
    assert GeometryLoader().load(TBContext()) is None


def answers_of_tensorboard(directory: Path, breaking: str) -> str:
    """Start TensorBoard in a process where something of ours is broken, and return what it answers."""
    code = f"""
        import sys, urllib.request
        import lightning_geo
        {breaking}
        from tensorboard import default, program
        from lightning_geo.dashboard.loader import GeometryLoader
        loaders = default.get_static_plugins() + [GeometryLoader]
        board = program.TensorBoard(loaders)
        board.configure(["", "--logdir", {str(directory)!r}, "--port", "0", "--load_fast", "false"])
        url = board.launch()
        for route in ("data/plugins_listing", "data/environment", "data/plugin/lightning_geo/index"):
            try:
                print(route, urllib.request.urlopen(url + route, timeout=60).read().decode())
            except OSError as error:
                print(route, "failed:", error)
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    ("breaking", "tab", "index"),
    [
        ("", True, '"runs": ['),
        ("sys.modules['lightning_geo.dashboard.plugin'] = None", False, "failed: HTTP Error 404"),
        ("import lightning_geo.dashboard.plugin as p; p.GeometryPlugin.__init__ = None", False, "Error 404"),
        ("import lightning_geo.dashboard.plugin as p; p.GeometryPlugin.get_plugin_apps = None", True, "404"),
        ("import lightning_geo.dashboard.plugin as p; p.GeometryPlugin.index = None", True, "Error 500"),
    ],
)
def test_tensorboard_starts_and_answers_whatever_of_ours_is_broken(
    breaking: str, tab: bool, index: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", [make_record(metrics=["entropy"])])
    listing, environment, ours = answers_of_tensorboard(tmp_path, breaking).splitlines()
    assert '"scalars"' in listing
    assert (f'"{PLUGIN}"' in listing) is tab
    assert '"data_location"' in environment
    assert index in ours
