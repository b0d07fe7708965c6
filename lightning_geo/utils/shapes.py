"""Shapes in signatures: ``Float[Tensor, "batch heads dim"]`` documents an argument, and tests check it.

The names are jaxtyping's where jaxtyping is loaded, as it is in this package's tests, which check every
call in the rooms ``functional`` and ``kernels``. Elsewhere they are stand-ins, so that importing the package
loads neither jaxtyping nor a type checker: annotations stay strings, and evaluate to the bare type.

``...`` stands for any axes, ``*batch`` for any number of them, ``#n`` for an axis of size n or 1, ``_`` for
any axis. Alone, ``...`` is written ``" ..."``: ruff would take its quotes, without which nothing is checked.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

__all__ = ["Bool", "Float", "Int64", "Integer", "Num", "Shaped"]

if TYPE_CHECKING:
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int64
    from typing import Annotated as Integer
    from typing import Annotated as Num
    from typing import Annotated as Shaped
elif "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Int64, Integer, Num, Shaped
else:

    class _Unchecked:
        """Stands in for a type of jaxtyping: whatever its shape, it is the array's own type."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Float = Int64 = Integer = Num = Shaped = _Unchecked
