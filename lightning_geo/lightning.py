"""The callback base class of whichever Lightning the user imported: two packages, two classes."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_lightning import Callback

__all__ = ["AnyCallback", "adopt", "lightning_logger"]

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")


def _bases() -> tuple[type, ...]:
    imported = [sys.modules[name] for name in _PACKAGES if name in sys.modules]
    found = tuple(module.Callback for module in imported if hasattr(module, "Callback"))
    return found or (importlib.import_module("pytorch_lightning").Callback,)


if TYPE_CHECKING:
    AnyCallback = Callback
else:
    AnyCallback = type("AnyCallback", _bases(), {"__doc__": "A callback for every Lightning imported so far."})


def adopt() -> None:
    """Become a callback of a Lightning that was imported in the meantime.

    A Trainer takes a bare callback, and a LightningCLI any, only if it is an instance of its own
    package's class; importing both packages for that would cost a user seconds.
    """
    bases = _bases()
    if not set(bases) <= set(AnyCallback.__mro__):
        AnyCallback.__bases__ = bases


def lightning_logger(trainer: Any) -> logging.Logger:
    """The logger below that of the trainer's package, so that lines appear where Lightning's do."""
    package = next((name for name in _PACKAGES if type(trainer).__module__.startswith(name)), _PACKAGES[0])
    return logging.getLogger(f"{package}.callbacks.geometry_monitor")
