"""Reads a policy from YAML. What does not fit is refused with file and line."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_geo.analysis.audit.policy import SAMPLES, Limit, Places, Policy, Waiver
from lightning_geo.metrics.selection import select, spec_of
from lightning_geo.metrics.spec import MetricSpec, unit_and_range
from lightning_geo.utils.yaml_file import EntryError, YamlFile, as_list, as_mapping, check_keys, read_yaml

__all__ = ["read_policy"]

_Specs = Mapping[str, MetricSpec]

_POLICY = ("policy", "owner", "purpose", "limits", "waivers")
_PLACES = ("stack", "layers", "heads")
_BOUNDS = ("at_least", "at_most", "change_at_most")
_LIMIT = ("name", "metric", *_PLACES, *_BOUNDS, "samples", "from_step", "required", "why")
_WAIVER = ("limit", "metric", *_PLACES, "reason", "approved_by", "expires")
_LARGEST = 1e300  # of a limit
_MOST = 10_000  # layers or heads; a larger number is a slip of the pen
_SPAN = re.compile(r"(\d{1,5})-(\d{1,5})")


def read_policy(path: str | os.PathLike[str], specs: _Specs | None = None) -> Policy:
    """Read a policy.

    Args:
        path: The file.
        specs: Of metrics that are not built in, as the audited run carries them.

    Raises:
        RunError: If it cannot be read or does not fit; the message names file and line.
    """
    file = read_yaml(path)
    try:
        return _policy(file, specs or {})
    except EntryError as error:
        raise file.error(error) from error


def _policy(file: YamlFile, specs: _Specs) -> Policy:
    content = as_mapping(file.content, "the policy")
    check_keys(content, _POLICY, "the policy")
    entries = as_list(content.get("limits"), "`limits`", "limits")
    if not entries:
        raise EntryError("Expected `limits` to have at least one entry but got none.", "limits")
    limits: dict[str, Limit] = {}
    for index, values in enumerate(entries):
        with _below("limits", index):
            limit = _limit(values, specs)
            if limit.name in limits:
                raise EntryError(f"Expected each limit to have a name of its own but got {limit.name!r} "
                                 "twice.", "name")  # fmt: skip
        limits[limit.name] = limit
    waivers = []
    for index, values in enumerate(as_list(content.get("waivers"), "`waivers`", "waivers")):
        with _below("waivers", index):
            waivers.append(_waiver(values, limits, specs))
    return Policy(
        _text(content, "policy", "the policy"), _text(content, "owner", "the policy"),
        tuple(limits.values()), tuple(waivers), _text(content, "purpose", "the policy", optional=True),
        file.path, hashlib.sha256(file.source).hexdigest(),
    )  # fmt: skip


class _below:
    """Put the place of an entry before that of an error in it."""

    def __init__(self, *keys: str | int) -> None:
        self._keys = keys

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, EntryError):
            error.keys = (*self._keys, *error.keys)


def _limit(values: object, specs: _Specs) -> Limit:
    entry = as_mapping(values, "a limit")
    name = _text(entry, "name", "a limit")
    what = f"limit {name!r}"
    check_keys(entry, _LIMIT, what)
    metrics = _metrics(entry, what, specs)
    of_metrics = [spec_of(metric, specs) for metric in metrics]
    places = _places(entry, what, of_metrics)
    bounds = {key: _number(entry, key, what) for key in _BOUNDS if key in entry}
    if not bounds:
        raise EntryError(f"Expected {what} to have `at_least`, `at_most` or `change_at_most`.")
    for spec in of_metrics:
        _check_range(bounds, spec, what)
    if "change_at_most" in bounds and len(bounds) > 1:
        raise EntryError(
            f"Expected {what} to have `change_at_most` alone: make two limits.", "change_at_most"
        )
    if bounds.get("change_at_most", 0) < 0:
        raise EntryError(f"Expected `change_at_most` of {what} to be 0 or more.", "change_at_most")
    if bounds.get("at_least", -math.inf) > bounds.get("at_most", math.inf):
        raise EntryError(f"Expected `at_least` of {what} to be no more than `at_most`.", "at_least")
    from_step = entry.get("from_step", 0)
    if not _is_count(from_step):
        raise EntryError(f"Expected `from_step` of {what} to be a step but got {from_step!r}.", "from_step")
    samples = entry.get("samples", "all" if "from_step" in entry else "last")
    if samples not in SAMPLES:
        raise EntryError(f"Expected `samples` of {what} to be one of {SAMPLES} but got {samples!r}.",
                         "samples")  # fmt: skip
    if samples == "last" and "from_step" in entry:
        raise EntryError(f"Expected {what} to have either `samples: last` or `from_step`.", "from_step")
    required = entry.get("required", True)
    if not isinstance(required, bool):
        raise EntryError(f"Expected `required` of {what} to be true or false but got {required!r}.",
                         "required")  # fmt: skip
    return Limit(name, metrics, places, **bounds, samples=samples, from_step=from_step, required=required,
                 why=_text(entry, "why", what, optional=True))  # fmt: skip


def _waiver(values: object, limits: Mapping[str, Limit], specs: _Specs) -> Waiver:
    entry = as_mapping(values, "a waiver")
    name = _text(entry, "limit", "a waiver")
    what = f"the waiver of {name!r}"
    check_keys(entry, _WAIVER, what)
    if name not in limits:
        raise EntryError(f"Expected `limit` of a waiver to be one of {', '.join(limits)} but got {name!r}.",
                         "limit")  # fmt: skip
    limit = limits[name]
    metrics = _metrics(entry, what, specs) if "metric" in entry else None
    foreign = [metric for metric in metrics or () if metric not in limit.metrics]
    if foreign:
        raise EntryError(f"Expected `metric` of {what} to be one of {', '.join(limit.metrics)} but got "
                         f"{foreign[0]!r}.", "metric")  # fmt: skip
    expires = entry.get("expires")
    if isinstance(expires, str):
        try:
            expires = dt.date.fromisoformat(expires)
        except ValueError:
            expires = None
    if type(expires) is not dt.date:
        raise EntryError(f"Expected `expires` of {what} to be a date such as 2030-01-31 but got "
                         f"{entry.get('expires')!r}.", "expires")  # fmt: skip
    places = _places(entry, what, [spec_of(metric, specs) for metric in metrics or limit.metrics])
    return Waiver(name, _text(entry, "reason", what), _text(entry, "approved_by", what), expires, metrics,
                  places)  # fmt: skip


def _metrics(entry: Mapping[str, Any], what: str, specs: _Specs) -> tuple[str, ...]:
    name = _text(entry, "metric", what)
    try:
        return select([f"metric:{name.removeprefix('metric:')}"], specs)
    except ValueError as error:
        text = str(error).removesuffix(".").partition(" All built-in names")[0]
        hint = text.partition("Did you mean ")[2]
        raise EntryError(
            f"Expected `metric` of {what} to be a built-in metric or one of the run's own but got {name!r}."
            + (f" Did you mean {hint.replace('metric:', '')}" if hint else ""),
            "metric",
        ) from error


def _places(entry: Mapping[str, Any], what: str, of_metrics: Iterable[MetricSpec]) -> Places:
    stacks = entry.get("stack")
    if stacks is not None:
        stacks = [stacks] if isinstance(stacks, str) else stacks
        if not isinstance(stacks, list) or not stacks or not all(isinstance(s, str) and s for s in stacks):
            raise EntryError(f"Expected `stack` of {what} to be the name of a stack, or a list of names, but "
                             f"got {entry['stack']!r}.", "stack")  # fmt: skip
    layers, heads = (_numbers(entry, key, what) for key in ("layers", "heads"))
    if heads is not None:
        for spec in of_metrics:
            if "head" not in spec.axes:
                raise EntryError(f"Expected {what} to have no `heads`: {spec.name} has one value per layer.",
                                 "heads")  # fmt: skip
    return Places(None if stacks is None else tuple(stacks), layers, heads)


def _numbers(entry: Mapping[str, Any], key: str, what: str) -> tuple[int, ...] | None:
    """Read ``3``, ``[3, 5]``, ``0-5`` and ``[0-5, 9]``."""
    if entry.get(key) is None:
        return None
    given = entry[key] if isinstance(entry[key], list) else [entry[key]]
    numbers: set[int] = set()
    for item in given:
        span = _SPAN.fullmatch(item) if isinstance(item, str) else None
        low, high = map(int, span.groups()) if span else (item, item)
        if not (_is_count(low) and low <= high < _MOST):
            numbers.clear()
            break
        numbers.update(range(low, high + 1))
    if not numbers:
        raise EntryError(f"Expected `{key}` of {what} to be numbers from 0, such as 3, [0, 2] or 0-5, but "
                         f"got {entry[key]!r}.", key)  # fmt: skip
    return tuple(sorted(numbers))


def _check_range(bounds: Mapping[str, float], spec: MetricSpec, what: str) -> None:
    """Refuse a limit that every value keeps, or none: it would check nothing."""
    low, high = (-math.inf if spec.range[0] is None else spec.range[0],
                 math.inf if spec.range[1] is None else spec.range[1])  # fmt: skip
    at_least, at_most = bounds.get("at_least", math.nan), bounds.get("at_most", math.nan)  # nan: never true
    for key, useless in (
        ("at_least", at_least <= low or at_least > high),
        ("at_most", at_most >= high or at_most < low),
    ):
        if useless:
            raise EntryError(
                f"Expected `{key}` of {what} to tell values of {spec.name} apart ({unit_and_range(spec)}) "
                f"but got {bounds[key]:g}: every value would pass, or none.",
                key,
            )


def _number(entry: Mapping[str, Any], key: str, what: str) -> float:
    value = entry[key]
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not abs(value) < _LARGEST:  # NaN is not less
        raise EntryError(f"Expected `{key}` of {what} to be a finite number but got {value!r}.", key)
    return float(value)


def _text(entry: Mapping[str, Any], key: str, what: str, *, optional: bool = False) -> str:
    value = entry.get(key, "" if optional else None)
    if not isinstance(value, str) or not (optional or value.strip()):
        got = f"got {value!r}" if key in entry else "it has none"
        raise EntryError(f"Expected `{key}` of {what} to be text, but {got}.", key)
    return " ".join(value.split())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
