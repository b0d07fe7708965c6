"""Specs of metrics that are not built in: checked, written into records, and read back from files.

A reader trusts nothing in a file, so that registration and reading share one check: what can be registered
can be read, and a name or text that no one could have registered is damage.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.spec import WORDS, MetricSpec
from lightning_geo.utils.errors import ArgumentError, DamagedError

__all__ = ["as_stored", "check_spec", "differing_fields", "read_specs"]

#: Names that ``metrics=`` or a tag already gives a meaning.
_TAKEN = frozenset(
    {
        *CATALOG,
        *(name.partition(".")[0] for name in CATALOG),
        *(spec.family for spec in CATALOG.values()),
        # what the loggers get beside metrics
        *("coverage", "findings", "heads", "layer_by_head", "layer_by_step", "report"),
    }
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,59}")
_PART = re.compile(r"[A-Za-z0-9_]{1,40}")
_AXES = (("layer", "head"), ("layer",))
_TEXTS = ("unit", "formula", "meaning", "source")
_LONGEST = 1000

#: What decides which number a metric is; the other fields are wording and looks.
_NUMBERS = ("axes", "unit", "formula", "parts", "summary")


def check_spec(spec: MetricSpec) -> None:
    """Raise unless a spec can be that of a foreign metric.

    Raises:
        ValueError: If the name is taken by a built-in metric or family, or a field is not what it must be.

    Example:
        >>> check_spec(CATALOG["entropy"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        lightning_geo.utils.errors.ArgumentError: Expected `name` to be new but got 'entropy', the name of...
    """
    for field in ("name", "family"):
        value = getattr(spec, field)
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise ArgumentError(
                f"Expected `{field}` to be a letter followed by at most 59 letters, digits and '_' (ASCII) "
                f"but got {str(value)[:80]!r}: it becomes a part of tags and file names."
            )
    if spec.name in _TAKEN:
        raise ArgumentError(
            f"Expected `name` to be new but got {spec.name!r}, the name of a built-in metric or family. "
            f"Choose another, such as {f'my_{spec.name}'!r}."
        )
    if not isinstance(spec.parts, tuple) or not all(
        isinstance(part, str) and _PART.fullmatch(part) and part != "stderr" for part in spec.parts
    ):
        raise ArgumentError(
            "Expected `parts` to be a tuple of names of letters, digits and '_' other than 'stderr' but got "
            f"{str(spec.parts)[:80]}."
        )
    if spec.axes not in _AXES:
        raise ArgumentError(f"Expected `axes` to be one of {_AXES} but got {str(spec.axes)[:80]}.")
    for field in (*_TEXTS, *WORDS):
        value, least = getattr(spec, field), 0 if field in WORDS else 1
        one_line = isinstance(value, str) and value.isprintable()
        if not one_line or not least <= len(value) <= _LONGEST:
            raise ArgumentError(
                f"Expected `{field}` to be one line of {least} to {_LONGEST} printable characters but got "
                f"{str(value)[:80]!r}."
            )
    _check_looks(spec)


def _check_looks(spec: MetricSpec) -> None:
    """Raise unless range, headline, key, summary, flags and scale are what they must be."""
    ends = spec.range if isinstance(spec.range, tuple) and len(spec.range) == 2 else (math.nan,)
    numbers = [end for end in ends if end is not None]
    if not all(_is_finite(end) for end in numbers) or (len(numbers) == 2 and numbers[0] >= numbers[1]):
        raise ArgumentError(
            "Expected `range` to be (lowest, highest), each a finite number or None, but got "
            f"{str(spec.range)[:80]}."
        )
    for field in ("headline", "key"):
        names = getattr(spec, field)
        if not isinstance(names, tuple) or not set(names) <= set(spec.stored_names):
            raise ArgumentError(
                f"Expected `{field}` to be a tuple of names among {spec.stored_names} but got "
                f"{str(names)[:80]}."
            )
    if spec.summary not in ("mean", "max"):
        raise ArgumentError(f'Expected `summary` to be "mean" or "max" but got {str(spec.summary)[:80]!r}.')
    for field in ("self_attention", "default", "signed"):
        if not isinstance(getattr(spec, field), bool):
            raise ArgumentError(
                f"Expected `{field}` to be a bool but got {str(getattr(spec, field))[:80]!r}."
            )
    if spec.log_from is not None and (not _is_finite(spec.log_from) or spec.signed):
        raise ArgumentError(
            "Expected `log_from` to be None or, of a metric that is not `signed`, a finite number but got "
            f"{str(spec.log_from)[:80]}."
        )


def _is_finite(value: object) -> bool:
    # a file may hold an integer that no float can be
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -1e300 < value < 1e300  # type: ignore[operator]


def as_stored(spec: MetricSpec) -> dict[str, Any]:
    """Return a spec as JSON has it, without its name."""
    stored = asdict(spec)
    del stored["name"]
    return stored


def read_specs(stored: object) -> tuple[dict[str, MetricSpec], list[str]]:
    """Return the specs that a record carries, and a sentence on each that cannot be used.

    A damaged one leaves its metric without description. One of a built-in name is passed over: the file that
    carries it must not change what built-in numbers mean.

    Args:
        stored: ``name -> fields``, from a file.

    Example:
        >>> read_specs({"entropy": {"unit": "bananas"}})
        ({}, ["the spec of 'entropy' was passed over: the metric is built in"])
    """
    if not isinstance(stored, Mapping):
        return {}, [f"the specs of metrics are damaged: {str(stored)[:40]!r}"]
    specs: dict[str, MetricSpec] = {}
    problems = []
    for name, values in stored.items():
        if name in CATALOG:
            problems.append(f"the spec of {name!r} was passed over: the metric is built in")
            continue
        try:
            specs[name] = _spec(name, values)
        except (TypeError, ValueError) as error:
            problems.append(
                f"the spec of {str(name)[:80]!r} is damaged, so that the metric has no description: {error}"
            )
    return specs, problems


def _spec(name: str, values: object) -> MetricSpec:
    if not isinstance(values, Mapping):
        raise DamagedError(f"expected fields but got {str(values)[:40]!r}")
    known = {field.name: field.default for field in fields(MetricSpec) if field.name != "name"}
    if missing := [field for field, default in known.items() if default is MISSING and field not in values]:
        raise DamagedError(f"it lacks {', '.join(missing)}")
    # fields of a newer version say nothing to this one
    given: dict[str, Any] = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in values.items()
        if field in known
    }
    spec = MetricSpec(name, **given)
    check_spec(spec)
    return spec


def differing_fields(one: MetricSpec, other: MetricSpec) -> tuple[str, ...]:
    """Return the fields by which two specs of one name say that their numbers are different ones.

    Wording and looks (meaning, source, range, headline, key) are none of them.
    """
    return tuple(field for field in _NUMBERS if getattr(one, field) != getattr(other, field))
