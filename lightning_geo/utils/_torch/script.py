"""Private names of TorchScript modules."""

from __future__ import annotations

import contextlib
from typing import Any

__all__ = [
    "script_attribute",
    "script_attributes",
    "set_script_attribute",
]


def script_attributes(module: Any) -> tuple[str, ...]:
    """Names of the attributes of a TorchScript module, none of which are in its ``__dict__``.

    Relies on ``ScriptModule._concrete_type`` and ``_c``; checked on torch 2.13.0.
    """
    names: tuple[str, ...] = ()
    with contextlib.suppress(AttributeError, RuntimeError):
        names = tuple(module._concrete_type.get_attributes())
    return tuple(name for name in (*names, "training") if module._c.hasattr(name))


def script_attribute(module: Any, name: str) -> Any:
    """The value of an attribute of a TorchScript module.

    Relies on ``ScriptModule._c``; checked on torch 2.13.0.
    """
    return module._c.getattr(name)


def set_script_attribute(module: Any, name: str, value: Any) -> None:
    """Set an attribute of a TorchScript module.

    Relies on ``ScriptModule._c``; checked on torch 2.13.0.
    """
    module._c.setattr(name, value)
