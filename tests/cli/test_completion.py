"""Completion in a shell: what bash itself proposes with the script that the command prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_geo.cli.completion import SHELLS
from lightning_geo.cli.main import main

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")

#: What bash does at a press of the tab key, without a terminal: the function registered for the command.
TAB = """
source "$1"; shift
[[ $(complete -p lightning-geo) =~ -F\\ ([^ ]+) ]]
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
"${BASH_REMATCH[1]}" lightning-geo "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def printed(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", shell])
    assert not stopped.value.code
    return capsys.readouterr().out


@needs_bash
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["d"], {"diagnose"}),
        (["re"], {"report"}),
        (["compare", "--fail"], {"--fail-above"}),
        (["audit", "run_a", "--po"], {"--policy"}),
        (["show", "run_"], {"run_a", "run_b"}),
        (["compare", "run_a", "run_b"], {"run_b"}),
        (["audit", "run_a", "--policy", "pol"], {"policy.yaml"}),
        (["--print-completion", "z"], {"zsh"}),
    ],
)
def test_bash_completes(
    words: list[str], expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run_a", "run_b"):
        (tmp_path / name).mkdir()
    (tmp_path / "policy.yaml").touch()
    (tmp_path / "run_notes.txt").touch()  # no run: commands that read runs do not propose files
    script = tmp_path / ".completion"
    script.write_text(printed("bash", capsys))
    done = subprocess.run(
        ["bash", "--norc", "-c", TAB, "bash", str(script), "lightning-geo", *words],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {line.rstrip(" /") for line in done.stdout.splitlines()} == expected
    assert done.stderr == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_with_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = printed(shell, capsys)
    assert all(command in script for command in ("show", "diagnose", "audit", "heads", "explain"))


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", "bash"])
    assert stopped.value.code == 2
    assert "pip install 'lightning-geo[completion]'" in capsys.readouterr().err
