"""The command itself: its name, version and help."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import lightning_geo
from lightning_geo.cli.main import main

Out = pytest.CaptureFixture[str]

COMMANDS = ("show", "diagnose", "audit", "compare", "report", "tail", "heads", "explain", "wandb-view")


def test_the_command_is_installed_under_its_name() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    [(module, function)] = re.findall(r'^lightning-geo = "([\w.]+):(\w+)"$', project, re.MULTILINE)
    assert getattr(importlib.import_module(module), function) is main


def test_the_version_is_the_packages(capsys: Out) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"lightning-geo {lightning_geo.__version__}\n"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_plain_text_and_fits(name: str, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert not re.search(r"``|:\w+:`|\*\*", out)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert all(command in out for command in COMMANDS) or name
