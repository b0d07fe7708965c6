"""METRICS.md, the guide to all metrics: its tables come from the catalogue, the text around them is by hand.

``python -m lightning_geo.metrics.document`` rewrites the tables of the file beside this module.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.spec import MetricSpec, unit_and_range
from lightning_geo.utils.errors import ArgumentError

__all__ = ["GUIDE", "tables", "updated"]

#: The guide, which ships with the package.
GUIDE = Path(__file__).with_name("METRICS.md")

_TABLES = re.compile(r"(?<=<!-- tables -->\n).*(?=<!-- end of tables -->)", re.DOTALL)
_DEFINED = "| metric | axes | unit, range | formula | source |"
_WORDED = "| metric | question | higher means | lower means | usual | worry when |"


def tables() -> str:
    """Return one Markdown section per family: what its metrics are, how they are read, which have charts.

    Example:
        >>> tables().splitlines()[0]
        '### entropy'
    """
    return "\n".join(
        _section(family, list(specs)) for family, specs in groupby(CATALOG.values(), lambda spec: spec.family)
    )


def updated(guide: str, content: str | None = None) -> str:
    """Return a guide with its tables written anew.

    Args:
        guide: Text of METRICS.md, or of another guide; ``<!-- tables -->`` and ``<!-- end of tables -->``
            enclose the tables.
        content: The tables; ``None`` for those of METRICS.md.

    Raises:
        ValueError: If the two markers are not there, on lines of their own.

    Example:
        >>> updated("<!-- tables -->\\nold\\n<!-- end of tables -->").count("### ") > 5
        True
    """
    text, pairs = _TABLES.subn(lambda _: f"\n{tables() if content is None else content}\n", guide)
    if pairs != 1:
        raise ArgumentError(
            f"Expected one pair of <!-- tables --> and <!-- end of tables --> in the guide but found {pairs}."
        )
    return text


def _section(family: str, specs: list[MetricSpec]) -> str:
    charted = [f"`{name}`" for spec in specs for name in spec.headline]
    key = [f"`{name}`" for spec in specs for name in spec.key]
    named = "Measured by default." if specs[0].default else f'Measured if `metrics=` names it: `"{family}"`.'
    lines = [f"### {family}", "", named, ""]
    lines += [_DEFINED, "| --- | --- | --- | --- | --- |", *map(_definition, specs), ""]
    lines += [_WORDED, "| --- | --- | --- | --- | --- | --- |", *map(_words, specs), ""]
    lines += [f"Scalars by default: {', '.join(key)}.", ""] * bool(key)
    lines += [f"Pictures, and charts by layer: {', '.join(charted)}.", ""] * bool(charted)
    return "\n".join(lines)


def _definition(spec: MetricSpec) -> str:
    # all roles, stages or gates of a metric share a row
    name = f"{spec.name}.{{{','.join(spec.parts)}}}" if spec.parts else spec.name
    return _row(f"`{name}`", ", ".join(spec.axes), unit_and_range(spec), spec.formula, spec.source)


def _words(spec: MetricSpec) -> str:
    name = f"**{spec.title}** `{spec.name}`"
    return _row(name, spec.question, spec.higher, spec.lower, spec.usual, spec.worry)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _main() -> None:
    """Bring the guide up to date."""
    GUIDE.write_text(updated(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _main()
