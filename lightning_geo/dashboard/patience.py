"""Retries TensorBoard's data provider while its reader is in the middle of an event."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Patience"]

_TRIES = 20
_PAUSE = 0.05


class Patience:
    """A data provider that retries while an event is being read.

    Without the fast data server, TensorBoard's reader notes the tag of a new event before it keeps the
    event's value. Whoever lists or reads tags between the two gets ``KeyError`` with the tag, and the page
    would show it as a missing run. The value is there in the next moment, so the call is repeated.

    Args:
        provider: TensorBoard's data provider.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._provider, name)
        return _patient(attribute) if callable(attribute) else attribute


def _patient(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        for _ in range(_TRIES - 1):
            try:
                return function(*args, **kwargs)
            except KeyError:
                time.sleep(_PAUSE)
        return function(*args, **kwargs)

    return answer
