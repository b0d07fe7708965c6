"""Triton's interpreter, in half of its time; imported where the interpreter was chosen before."""

from __future__ import annotations

import gc
from typing import Any

from triton import language as tl
from triton.runtime import interpreter


def make_the_interpreter_faster() -> None:
    """Take half off its time: what it makes anew at each operation is made once for each type."""
    patch_language = interpreter._patch_lang

    def unless_patched(function: Any) -> Any:
        languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(language.program_id) for language in languages):
            return patch_language(function)
        return None  # within a kernel, whose scope restores the language

    init, numpy_dtype = tl.tensor.__init__, interpreter._get_np_dtype
    shapes: dict[str, dict[str, Any]] = {}
    dtypes: dict[str, Any] = {}

    def known_shape(self: Any, handle: Any, kind: Any) -> None:
        if kind.name not in shapes:
            init(self, handle, kind)
            shapes[kind.name] = {**vars(self)}
        vars(self).update(shapes[kind.name], handle=handle, type=kind)

    def known_dtype(kind: Any) -> Any:
        if kind.name not in dtypes:
            dtypes[kind.name] = numpy_dtype(kind)
        return dtypes[kind.name]

    interpreter._patch_lang = unless_patched
    tl.tensor.__init__, interpreter._get_np_dtype = known_shape, known_dtype
    gc.disable()  # it would look through millions of small objects, of which reference counts free all
