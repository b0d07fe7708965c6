"""The rules of a run: those of the table, changed, silenced and added to, in Python or by a file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.rule import Departure, Level, Rule
from lightning_geo.utils.arguments import check_type
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.formatting import did_you_mean
from lightning_geo.utils.yaml_file import EntryError, YamlFile, as_list, as_mapping, check_keys, read_yaml

__all__ = ["read_rules", "rule_of", "rule_set"]

_SECTIONS = ("rules", "change", "silence")
_OF_A_RULE = tuple(field.name for field in fields(Rule) if field.name != "test")
_OF_A_LEVEL = tuple(field.name for field in fields(Level))
_OF_A_DEPARTURE = tuple(field.name for field in fields(Departure))


def rule_set(
    rules: Iterable[Rule] = (),
    change: Mapping[str, Mapping[str, Any]] | None = None,
    silence: Collection[str] = (),
) -> tuple[Rule, ...]:
    """Return the built-in rules, changed, without some, with others.

    Args:
        rules: Further rules; a name of a built-in one is refused.
        change: Name -> fields of the rule, or of its test, with their new values.
        silence: Names of rules to leave out.

    Raises:
        ValueError: If a name or a field is unknown, taken twice, or a value does not fit.

    Example:
        >>> rules = rule_set(change={"entropy_collapse": {"at_most": 0.02}}, silence=["first_token_sink"])
        >>> {rule.name: rule for rule in rules}["entropy_collapse"].test.at_most
        0.02
    """
    if isinstance(silence, str) or not isinstance(silence, Iterable):
        raise ArgumentError(f"Expected `silence` to be a list of rules' names but got {silence!r}.")
    check_type("rules", rules, Iterable, "a list of rules")
    result = dict(RULES)
    for rule in rules:
        check_type("rules", rule, Rule, "a list of rules, each a Rule(…),")
        if rule.name in result:
            raise ArgumentError(
                f"Expected a name of its own for each rule but got {rule.name!r} twice. Use `change` for a "
                "built-in one."
            )
        result[rule.name] = rule
    for name, values in as_mapping(change or {}, "`change`").items():
        known = _known(name, result, "change")
        result[known] = _changed(result[known], values)
    for name in silence:
        _known(name, RULES | result, "silence")
        result.pop(name, None)
    return tuple(result.values())


def read_rules(path: str | os.PathLike[str]) -> tuple[Rule, ...]:
    """Read a file of rules: YAML with ``rules``, ``change`` and ``silence`` as in :func:`rule_set`.

    Args:
        path: The file.

    Raises:
        RunError: If it cannot be read or is not valid; the message names the file, the line and the entry.
    """
    file = read_yaml(path)
    try:
        sections = {} if file.content is None else as_mapping(file.content, "the file")
        check_keys(sections, _SECTIONS, "the file")
        entries = as_list(sections.get("rules"), "rules", "rules")
        change = as_mapping(sections.get("change") or {}, "change", "change")
        silence = as_list(sections.get("silence"), "silence", "silence")
    except EntryError as error:
        raise file.error(error) from error
    rules: list[Rule] = []
    for index, values in enumerate(entries):
        with _at(file, "rules", index):
            rules.append(rule_of(values))
            rule_set(rules)
    for name, values in change.items():
        with _at(file, "change", name):
            rule_set(rules, {name: values})
    for index, name in enumerate(silence):
        with _at(file, "silence", index):
            rule_set(rules, silence=[name])
    return rule_set(rules, change, silence)


@contextmanager
def _at(file: YamlFile, *keys: str | int) -> Iterator[None]:
    """Add file and line to the error of an entry."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise file.error(error, *keys) from error


def rule_of(values: object) -> Rule:
    """Return the rule that a file's entry describes.

    Args:
        values: ``name``, ``metrics``, ``message`` and further fields of :class:`Rule`, and either those of
            :class:`Level` or ``departure`` with those of :class:`Departure`.

    Raises:
        ValueError: If a key is unknown or missing, or a value does not fit.

    Example:
        >>> rule_of({"name": "flat", "metrics": "entropy", "at_least": 3, "message": "{where}"}).test
        Level(at_least=3, at_most=None, start_at_least=None, start_at_most=None, start_of=None, \
unlike_others=False)
    """
    entry = dict(as_mapping(values, "a rule"))
    name = entry.get("name")
    what = f"rule {name!r}"
    check_keys(entry, (*_OF_A_RULE, *_OF_A_LEVEL, "departure"), what)
    missing = [key for key in ("name", "metrics", "message") if key not in entry]
    if missing:
        raise ArgumentError(f"Expected {what} to have {' and '.join(map(repr, missing))}, but it has not.")
    level = {key: entry.pop(key) for key in _OF_A_LEVEL if key in entry}
    departure = entry.pop("departure", None)
    if (departure is None) == (not level):
        raise ArgumentError(f"Expected {what} to have either limits of a level or `departure`.")
    for key in ("metrics", "causes", "next"):
        if key in entry:
            texts = entry[key]
            entry[key] = (texts,) if isinstance(texts, str) else tuple(as_list(texts, f"{key} of {what}"))
    if departure is None:
        return Rule(test=Level(**_numbers(level, what)), **entry)
    departure = as_mapping(departure, f"departure of {what}", "departure")
    check_keys(departure, _OF_A_DEPARTURE, f"departure of {what}", "departure")
    return Rule(test=Departure(**_numbers(departure, what)), **entry)


def _changed(rule: Rule, values: Mapping[str, Any]) -> Rule:
    values = as_mapping(values, f"change of {rule.name!r}")
    of_test = tuple(field.name for field in fields(rule.test))
    own = tuple(name for name in _OF_A_RULE if name != "name")
    check_keys(values, (*own, *of_test), f"change of {rule.name!r}")
    texts = {key: (v,) if isinstance(v, str) else tuple(v) for key, v in values.items()
             if key in ("metrics", "causes", "next")}  # fmt: skip
    test = _numbers({key: v for key, v in values.items() if key in of_test}, f"rule {rule.name!r}")
    rest = {key: v for key, v in values.items() if key in own}
    return replace(rule, test=replace(rule.test, **test), **(rest | texts))


def _numbers(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Check that limits are numbers: YAML has text where somebody wrote ``0,5``."""
    for key, value in values.items():
        text = key in ("start_of", "direction")
        flag = key in ("unlike_others", "log", "per_interval")
        expected: tuple[type, ...] = (str,) if text else (bool,) if flag else (int, float)
        if value is not None and (not isinstance(value, expected) or isinstance(value, bool) != flag):
            kind = "text" if text else "true or false" if flag else "a number"
            raise EntryError(f"Expected `{key}` of {what} to be {kind} but got {value!r}.", key)
    return dict(values)


def _known(name: object, rules: Mapping[str, Rule], where: str) -> str:
    if not isinstance(name, str) or name not in rules:
        raise ArgumentError(f"Expected `{where}` to name rules but got {name!r}. {did_you_mean(name, rules)}")
    return name
