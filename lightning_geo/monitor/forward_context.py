"""The precision in which a loop's own code calls a model, seen when it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["ForwardContext"]


class ForwardContext:
    """Autocast and default type of the last call that was looked at; both as they are before the first.

    Args:
        device: Of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._kind = device.type
        self._autocast: dict[str, Any] | None = None
        self._default: torch.dtype | None = None

    @property
    def known(self) -> bool:
        """Whether a call was looked at."""
        return self._default is not None

    def look(self) -> None:
        """Remember what holds where a call begins."""
        kind = self._kind
        self._default = torch.get_default_dtype()
        self._autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
        }

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Restore it while the context is open."""
        if self._autocast is None or self._default is None:
            yield
            return
        before = torch.get_default_dtype()
        torch.set_default_dtype(self._default)
        try:
            with torch.autocast(**self._autocast):
                yield
        finally:
            torch.set_default_dtype(before)
