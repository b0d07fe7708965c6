"""Descriptions whose failing examples can be read."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

__all__ = ["Short"]


class Short:
    """Shows what is not the default, so that a failing example can be read."""

    def __repr__(self) -> str:
        shown = [
            f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default
        ]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show it the same way in what hypothesis prints."""
        printer.text(repr(self))
