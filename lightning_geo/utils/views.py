"""Lets an object show itself by code of a room above its own, which it may not import.

A class asks for its view by name, and the room that draws registers it. The package's root, which knows all
rooms, provides a function that loads that room. So a run draws itself although ``storage`` does not import
``report``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["provide", "view", "views_of"]

_VIEWS: dict[tuple[type, str], Callable[..., Any]] = {}
_LOAD: list[Callable[[], object]] = []


def provide(load: Callable[[], object]) -> None:
    """Set the function that loads the views at their first use: reading a run loads nothing that draws.

    Args:
        load: Imports the modules that register them.
    """
    _LOAD.append(load)


def views_of(kind: type, **views: Callable[..., Any]) -> None:
    """Register the views of a class.

    Args:
        kind: The class.
        views: By name; each takes the object first.
    """
    _VIEWS.update({(kind, name): drawn for name, drawn in views.items()})


def view(shown: object, name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a view of an object.

    Args:
        shown: The object; its class or one above it has the view.
        name: Name of the view.
        args: For the view.
        kwargs: For the view.

    Raises:
        LookupError: If no module registered it.

    Example:
        >>> class Run: ...
        >>> views_of(Run, short=lambda run, digits: "1.23456"[:digits])
        >>> view(Run(), "short", 4)
        '1.23'
    """
    while _LOAD:
        _LOAD[0]()
        _LOAD.pop(0)
    for kind in type(shown).__mro__:
        if (drawn := _VIEWS.get((kind, name))) is not None:
            return drawn(shown, *args, **kwargs)
    raise LookupError(f"Expected a view {name!r} of {type(shown).__name__}, but none is registered.")
