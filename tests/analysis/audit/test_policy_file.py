"""Policies: read as they are written, or refused with file and line."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path

import pytest

from lightning_geo.analysis.audit.policy import Limit, Places, Waiver
from lightning_geo.analysis.audit.policy_file import read_policy
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.utils.errors import RunError

ROOT = Path(__file__).parents[3]
OWN = MetricSpec("keys_in_use", "mine", ("layer", "head"), "keys", "f", "m", "s", range=(1.0, None))

FILE = """\
policy: "  Two
  lines "
owner: R. Roe
limits:
  - name: focus
    metric: entropy
    stack: encoder
    layers: [0-2, 7]
    heads: 3
    at_least: 1e-2
    samples: measured
    from_step: 100
    required: false
  - {name: rank, metric: effective_rank, at_most: 30, from_step: 5}
  - {name: own, metric: keys_in_use, change_at_most: 0}
waivers:
  - {limit: rank, metric: effective_rank.key, reason: r, approved_by: a, expires: 2030-01-31}
  - {limit: own, reason: r, approved_by: a, expires: '2030-02-28', heads: [1]}
"""


def test_a_policy_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(FILE)
    policy = read_policy(path, {"keys_in_use": OWN})
    assert (policy.name, policy.owner, policy.purpose, policy.path) == ("Two lines", "R. Roe", "", str(path))
    assert policy.hash == hashlib.sha256(FILE.encode()).hexdigest()
    roles = tuple(f"effective_rank.{role}" for role in ("query", "key", "value", "output"))
    assert policy.limits == (
        Limit("focus", ("entropy",), Places(("encoder",), (0, 1, 2, 7), (3,)), at_least=0.01,
              samples="measured", from_step=100, required=False),
        Limit("rank", roles, at_most=30.0, samples="all", from_step=5),
        Limit("own", ("keys_in_use",), change_at_most=0.0),
    )  # fmt: skip
    assert policy.waivers == (
        Waiver("rank", "r", "a", dt.date(2030, 1, 31), ("effective_rank.key",)),
        Waiver("own", "r", "a", dt.date(2030, 2, 28), None, Places(heads=(1,))),
    )


#: What replaces line 3 of this policy, or lines from there on, and the line and message of the refusal.
HEAD = "policy: p\nowner: o\n"
LIMIT = HEAD + "limits:\n- name: a\n  metric: entropy\n"
WAIVER = LIMIT + "  at_least: 1\nwaivers:\n- limit: a\n  reason: r\n  approved_by: o\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "the policy to be a mapping"),
        (HEAD, 1, "`limits` to have at least one entry"),
        (HEAD + "limits: []", 3, "`limits` to have at least one entry"),
        (HEAD + "limits: {a: 1}", 3, "`limits` to be a list"),
        (HEAD + "limts: []", 3, "Did you mean 'limits'"),
        ("owner: o\n" + "limits: [{name: a, metric: entropy, at_least: 1}]", 1, "`policy` of the policy"),
        ("policy: p\nowner: ' '\n" + "limits: [{name: a, metric: entropy, at_least: 1}]", 2, "`owner`"),
        (LIMIT, 4, "to have `at_least`, `at_most` or `change_at_most`"),
        (LIMIT + "  at_lest: 1", 6, "Did you mean 'at_least'"),
        (LIMIT + "  at_least: '1'", 6, "a finite number but got '1'"),
        (LIMIT + "  at_least: yes", 6, "a finite number but got True"),
        (LIMIT + "  at_least: .nan", 6, "a finite number"),
        (LIMIT + "  at_least: -.inf", 6, "a finite number"),
        (LIMIT + "  at_least: " + "9" * 400, 6, "a finite number"),
        (LIMIT + "  at_least: 0,5", 6, "a finite number but got '0,5'"),
        (LIMIT + "  at_least: 010", 6, "a decimal number but got 010"),
        (LIMIT + "  at_least: 1:30", 6, "a decimal number"),
        (LIMIT + "  at_least: 0", 6, "every value would pass, or none"),
        (LIMIT + "  at_most: -1", 6, "every value would pass, or none"),
        (LIMIT + "  at_least: 3\n  at_most: 2", 6, "no more than `at_most`"),
        (LIMIT + "  at_least: 3\n  change_at_most: 2", 7, "alone"),
        (LIMIT + "  change_at_most: -2", 6, "0 or more"),
        (LIMIT + "  at_least: 1\n  at_least: 2", 7, "each key once but got 'at_least', as in line 6"),
        (LIMIT + "  at_least: 1\n  layers: [-1]", 7, "numbers from 0"),
        (LIMIT + "  at_least: 1\n  layers: []", 7, "numbers from 0"),
        (LIMIT + "  at_least: 1\n  layers: 5-3", 7, "numbers from 0"),
        (LIMIT + "  at_least: 1\n  heads: true", 7, "numbers from 0"),
        (LIMIT + "  at_least: 1\n  stack: [1]", 7, "name of a stack"),
        (LIMIT + "  at_least: 1\n  samples: first", 7, "one of ('last', 'all', 'measured')"),
        (LIMIT + "  at_least: 1\n  samples: last\n  from_step: 3", 8, "either `samples: last` or"),
        (LIMIT + "  at_least: 1\n  from_step: 1.5", 7, "a step but got 1.5"),
        (LIMIT + "  at_least: 1\n  required: 1", 7, "true or false but got 1"),
        (LIMIT + "  at_least: 1\n- {name: a, metric: entropy, at_least: 1}", 7, "a name of its own"),
        (HEAD + "limits:\n- name: a\n  metric: entropi\n  at_least: 1", 5, "Did you mean 'entropy'"),
        (HEAD + "limits:\n- name: a\n  metric: entropy.stderr\n  at_least: 1", 5, "a built-in metric"),
        (LIMIT.replace("entropy", "cone.output") + "  at_least: 0.1\n  heads: 1", 7, "one value per layer"),
        (HEAD + "limits:\n- name: [a]\n  metric: entropy", 4, "`name` of a limit to be text"),
        (HEAD + "limits: [entropy]", 3, "a limit to be a mapping"),
        (WAIVER, 8, "a date such as 2030-01-31 but got None"),
        (WAIVER + "  expires: 2030-02-30", 11, "2030-02-30"),
        (WAIVER + "  expires: 2030-02-28 10:00:00", 11, "a date such as"),
        (WAIVER + "  expires: soon", 11, "a date such as"),
        (WAIVER + "  expires: 2030-01-31\n  metric: cone.output", 12, "one of entropy"),
        (WAIVER.replace("limit: a", "limit: b"), 8, "one of a but got 'b'"),
        (WAIVER + "  until: 2030-01-31", 11, "only known keys"),
        (LIMIT + "  at_least: [1", 6, "not valid YAML"),
        (LIMIT + "  at_least: 1\n---\na: b", 7, "not valid YAML"),
        (LIMIT + "  at_least: 1\n  why: \x07", 7, "U+0007"),
        (LIMIT + "  on: 1", 6, "keys to be text but got True"),
        ("a: &a [*a]", 1, "alias to name an entry elsewhere but got one to an entry that holds it"),
        ("a: " + "[" * 5000, 1, "nested too deeply"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(RunError) as refused:
        read_policy(path)
    assert message in str(refused.value)
    if "nested" not in message:
        assert str(refused.value).startswith(f"{str(path)!r}, line {line}: ")


def test_a_file_that_is_no_text_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_bytes(b"policy: p\nowner: \xff")
    with pytest.raises(RunError, match="line 2: not valid YAML: not UTF-8"):
        read_policy(tmp_path / "policy.yaml")
    with pytest.raises(RunError, match="Cannot read"):
        read_policy(tmp_path / "none.yaml")


def test_the_example_fits_the_catalog() -> None:
    policy = read_policy(ROOT / "examples" / "policy.yaml")
    assert len(policy.limits) >= 5
    assert any(limit.of_change for limit in policy.limits)
    assert policy.waivers
