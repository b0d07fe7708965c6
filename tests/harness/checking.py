"""A record against the truth: every number right and on its row, or absent by leave and with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import lightning_geo
from harness.description import ENTROPY, PATTERN, Description
from harness.models import build
from harness.truth import Truth, truth_of

__all__ = ["Wrong", "check", "compare", "measured"]

KNOWN = (*ENTROPY, *PATTERN)


class Wrong(AssertionError):
    """A number that is not right, or absent without a reason, or of nothing that the model computed."""


@dataclass
class Row:
    """One layer of a record's stack that has heads or a number."""

    stack: str
    index: int
    module: str
    heads: int
    numbers: dict[str, NDArray[Any]]


def check(d: Description) -> None:
    """Build, measure and compare.

    Raises:
        Wrong: With the description, what was expected and what came.
    """
    built = build(d)
    truth = truth_of(built)
    result = measured(built.model, built.batch)
    faults = compare(
        result, truth, d.allowed_absent(), d.tolerance, some_left_out=d.parts.startswith("channels")
    )
    if faults:
        more = [f"… and {len(faults) - 8} more"] if len(faults) > 8 else []
        raise Wrong("\n".join([f"{d!r}", *faults[:8], *more]))


def measured(model: nn.Module, batch: Any) -> Any:
    """The record of :func:`lightning_geo.measure`, or the exception that it raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return lightning_geo.measure(model, batch, metrics=["entropy", "pattern"])
        except Exception as error:
            return error


def compare(
    result: Any,
    truth: Sequence[Truth],
    allowed: Collection[str] = (),
    tolerance: float = 2e-4,
    some_left_out: bool = False,
) -> list[str]:
    """List what is not right.

    Args:
        result: A record, or the exception raised instead.
        truth: All attentions between tokens, in the order in which they were computed.
        allowed: Metrics that may be absent, if a reason is given.
        tolerance: Of numbers, relative to 1 or to themselves where they are larger.
        some_left_out: Whether the model also computes attention that must have no numbers, but a reason.
    """
    if isinstance(result, Exception):
        return _refused(result, truth, allowed)
    rows = _rows(result)
    faults = [
        f"a row of stack {row.stack!r} without the name of a module: {row.index}"
        for row in rows
        if not row.module
    ]
    left_out = _left_out(result)
    if some_left_out and not left_out:
        faults.append("the channels' attention is left out without a reason")
    pairs, extra = _match(rows, truth)
    faults += [
        f"numbers of nothing that was computed: {row.stack}[{row.index}], {row.module!r}" for row in extra
    ]
    for one, row in pairs:
        where = f"{one.path!r} attention {one.order}"
        if row is not None:
            where += f" in {row.stack}[{row.index}]"
            faults += [f"{where}: {fault}" for fault in _misplaced(one, row)]
            if row.heads != one.heads:
                faults.append(f"{where}: expected {one.heads} heads, got {row.heads}")
                continue
        faults += [f"{where}: {fault}" for fault in _differences(one, row, allowed, tolerance, left_out)]
    return faults


def _refused(error: Exception, truth: Sequence[Truth], allowed: Collection[str]) -> list[str]:
    """A sample that was given up as a whole."""
    said = f"{type(error).__name__}: {str(error)[:300]}"
    if not isinstance(error, ValueError):
        return [f"expected a record, got {said}"]
    if not truth or all(set(one.numbers) <= set(allowed) for one in truth):
        named = not truth or any(one.path in str(error) for one in truth)
        return [] if named else [f"absent, but the message names no module: {said}"]
    return [f"expected a record, got {said}"]


def _left_out(record: Any) -> dict[str, list[str]]:
    """Reason -> modules."""
    coverage = getattr(record, "coverage", None)
    if coverage is None:
        return {}
    found = coverage.get("left_out", {}) if isinstance(coverage, dict) else coverage.left_out
    return {reason: modules for reason, modules in dict(found).items() if reason.strip()}


def _rows(record: Any) -> list[Row]:
    rows = []
    for stack, structure in record.model["stacks"].items():
        arrays = {name: record.stacks[stack][name] for name in KNOWN if name in record.stacks.get(stack, {})}
        for index, (module, heads) in enumerate(zip(structure["modules"], structure["heads"], strict=True)):
            numbers = {
                name: array[index] for name, array in arrays.items() if np.isfinite(array[index]).any()
            }
            if heads or numbers:  # else a layer without attention
                rows.append(Row(stack, index, module or "", heads, numbers))
    return rows


def _match(rows: list[Row], truth: Sequence[Truth]) -> tuple[list[tuple[Truth, Row | None]], list[Row]]:
    """Give every attention its row, by the module's path and then by order; what is left has none."""
    paths = list(dict.fromkeys(one.path for one in truth))
    owned: dict[str, list[Row]] = {path: [] for path in paths}
    extra = []
    for row in rows:
        near = [path for path in paths if _related(path, row.module)]
        owner = row.module if row.module in paths else max(near, key=len) if near else None
        if owner is None:
            extra.append(row)
        else:
            owned[owner].append(row)
    pairs: list[tuple[Truth, Row | None]] = []
    for path in paths:
        mine = [one for one in truth if one.path == path]
        pairs += [(one, owned[path][i] if i < len(owned[path]) else None) for i, one in enumerate(mine)]
        extra += owned[path][len(mine) :]
    return pairs, extra


def _related(path: str, module: str) -> bool:
    """Whether one is the other, or inside it."""
    return f"{path}.".startswith(f"{module}.") or f"{module}.".startswith(f"{path}.")


def _misplaced(one: Truth, row: Row) -> list[str]:
    faults = []
    if one.index is not None and row.index != one.index:
        faults.append(f"expected in row {one.index}")
    if one.cross != ("cross" in row.stack.split(".")):
        faults.append(f"expected {'a' if one.cross else 'no'} cross-attention")
    return faults


def _differences(
    one: Truth, row: Row | None, allowed: Collection[str], tolerance: float, left_out: dict[str, list[str]]
) -> list[str]:
    said = any(_related(one.path, module) for modules in left_out.values() for module in modules)
    faults = []
    for name, expected in one.numbers.items():
        defined = np.isfinite(expected)
        got = None if row is None else row.numbers.get(name)
        if got is None:
            if defined.any() and name not in allowed:
                faults.append(
                    f"{name}: expected {_shown(expected)}, got nothing{' (a reason is given)' * said}"
                )
            elif defined.any() and not said:
                faults.append(f"{name}: expected {_shown(expected)}, got nothing, without a reason")
            continue
        got = got[: one.heads].astype(np.float64)
        bound = tolerance * np.maximum(1.0, np.abs(np.where(defined, expected, 0.0)))
        with np.errstate(invalid="ignore"):
            same = np.where(defined, np.abs(got - expected) <= bound, np.isnan(got))
        if not same.all():
            faults.append(f"{name}: expected {_shown(expected)}, got {_shown(got)}")
    return faults


def _shown(values: NDArray[Any]) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in values) + "]"
