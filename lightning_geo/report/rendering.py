"""Pages from the templates beside this file. Every value is escaped unless it is markup already."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning_geo._version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Table", "render"]

_TEMPLATES = Path(__file__).parent / "templates"


class Table(NamedTuple):
    """The contents of a table.

    Args:
        header: Titles of the columns.
        rows: Cells of each row, as many as titles; anything that ``str`` takes.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def render(template: str, **content: object) -> str:
    """Return a page.

    Args:
        template: Name of a file in ``templates/``.
        content: The names that the template refers to; a missing name is an error.
    """
    return _environment().get_template(template).render(version=__version__, **content)


@functools.cache
def _environment() -> Environment:
    # imported here: only a page that is being written is worth the import
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
