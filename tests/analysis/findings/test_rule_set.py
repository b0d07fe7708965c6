"""Rules changed, silenced and added, in Python and by a file; what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.rule import Departure, Level, Rule
from lightning_geo.analysis.findings.rule_set import read_rules, rule_of, rule_set
from lightning_geo.utils.errors import RunError

FILE = """
rules:
  - name: sharp
    metrics: entropy
    at_most: 0.2
    heads: 0.5
    samples: 3
    severity: critical
    message: "{where}: {metric} is {value}, was {usual}."
    causes: [a, b]
  - name: turning
    metrics: [effective_rank.query, effective_rank.key]
    departure: {spreads: 6, direction: down}
    message: "{where}"
change:
  entropy_collapse: {at_most: 0.01, severity: critical, next: Stop.}
  sharp: {samples: 1}
silence: [first_token_sink, twin_heads]
"""


def test_a_file_changes_silences_and_adds(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(FILE)
    rules = {rule.name: rule for rule in read_rules(tmp_path / "rules.yaml")}
    assert set(rules) == set(RULES) - {"first_token_sink", "twin_heads"} | {"sharp", "turning"}
    assert rules["sharp"] == Rule(
        "sharp", ("entropy",), Level(at_most=0.2), "{where}: {metric} is {value}, was {usual}.",
        "critical", samples=1, heads=0.5, causes=("a", "b"),
    )  # fmt: skip
    assert rules["turning"].test == Departure(spreads=6, direction="down")
    collapse = rules["entropy_collapse"]
    assert (collapse.test, collapse.severity) == (Level(at_most=0.01, start_at_least=0.15), "critical")
    assert collapse.next == ("Stop.",)
    assert rules["rank_collapse"] is RULES["rank_collapse"]
    (tmp_path / "empty.yaml").write_text("")
    assert read_rules(tmp_path / "empty.yaml") == tuple(RULES.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("silence: [entropy_colapse]", "Did you mean 'entropy_collapse'"),
        ("silence: entropy_collapse", "Expected silence to be a list"),
        ("silenced: [a]", "Did you mean 'silence'"),
        ("change: {departure: {spread: 3}}", "Did you mean 'spreads'"),
        ("change: {departure: {spreads: '3'}}", "Expected `spreads` of rule 'departure' to be a number"),
        ("change: {departure: {spreads: -1}}", "`spreads` of a departure to be a number above 0 but got -1"),
        ("change: {nothing: {samples: 3}}", "line 1: Expected `change` to name rules but got 'nothing'"),
        ("change: {departure: {name: x}}", "got 'name'"),
        ("rules: [{name: a, at_most: 1, message: m}]", "to have 'metrics'"),
        ("rules: [{name: a, metrics: b, message: m}]", "either limits of a level or `departure`"),
        ("rules: [{name: a, metrics: b, at_most: yes, message: m}]", "to be a number but got True"),
        ("rules: [{name: a, metrics: b, at_most: 1, message: '{x}'}]", "use only {where}"),
        ("rules: [{name: a, metrics: b, at_most: 1, message: m, samples: 0}]", "at least 1 but got 0"),
        ("rules: [{name: a, metrics: b, at_most: 1, message: m, heads: 2}]", "a share from 0 to 1"),
        ("rules: [{name: a, metrics: b, at_most: 1, message: m, severity: bad}]", "one of"),
        ("rules: [{name: departure, metrics: b, at_most: 1, message: m}]", "a name of its own"),
        ("rules: [a]", "Expected a rule to be a mapping"),
        ("- a", "Expected the file to be a mapping"),
        ("a: [", "not valid YAML"),
        (
            "rules:\n- {name: a, metrics: b, at_most: 1, message: m}\n- name: b\n  at_leats: 1",
            "line 4: Expected only known",
        ),
        ("change:\n  departure:\n    window: 9\n    spreads: x", "line 4: Expected `spreads`"),
        ("silence: [departure,\n nothing]", "line 2: Expected `silence` to name rules"),
        ("silence: [departure]\nsilence: [twin_heads]", "line 2: Expected each key once"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_files_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(RunError, match=r"rules\.yaml") as refused:
        read_rules(path)
    assert message in str(refused.value)


def test_a_missing_file_and_python_arguments() -> None:
    with pytest.raises(RunError, match=r"Cannot read 'nowhere\.yaml'"):
        read_rules("nowhere.yaml")
    with pytest.raises(ValueError, match="`silence` to be a list"):
        rule_set(silence="departure")
    with pytest.raises(ValueError, match="`at_least` or `at_most`"):
        Level()
    with pytest.raises(ValueError, match="a rule to be a mapping"):
        rule_of("entropy")
