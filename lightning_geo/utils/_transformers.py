"""Private and fragile names of transformers, and of accelerate below it, each behind one function.

An update of transformers that renames one of them is repaired here. ``tests/test_private_names.py`` fails for
every use of such a name elsewhere in the package. Nothing here imports transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = [
    "accumulates_in_accelerate",
    "attention_lookups",
    "callbacks_of",
    "is_conv1d",
    "logs_to_wandb",
    "offloading_hooks",
    "trainer_calling",
    "writer_of",
]


@contextmanager
def attention_lookups(replace: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Exchange the attention functions that models look up while the context is open.

    The lookup is intercepted, not the table: ``eager`` stands in no table, each model file brings
    its own, and a *new* name would lose the padding mask, which is made by name.

    Relies on ``AttentionInterface.get_interface`` in ``transformers.modeling_utils``; checked on transformers
    5.17.0 and 5.23.0. Where that was never imported no model of transformers can be in use, and nothing is
    exchanged. transformers 4 has no such method, see :func:`_lookups_of_4`.
    """
    library = sys.modules.get("transformers.modeling_utils")
    interface = getattr(library, "AttentionInterface", None)
    if interface is None:
        yield
        return
    if not hasattr(interface, "get_interface"):
        with _lookups_of_4(interface, replace):
            yield
        return
    original = interface.get_interface

    def get_interface(self: Any, attn_implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        return replace(attn_implementation, original(self, attn_implementation, default))

    interface.get_interface = get_interface
    try:
        yield
    finally:
        interface.get_interface = original


@contextmanager
def _lookups_of_4(interface: Any, replace: Callable[[str, Callable[..., Any]], Any]) -> Iterator[None]:
    """Exchange the attention functions that models of transformers 4 look up while the context is open.

    They look them up in an instance of ``AttentionInterface`` by name, but for ``eager``: that is the
    function ``eager_attention_forward`` of the model's own file. Checked on transformers 4.56.0.
    """
    original, name = interface.__getitem__, "eager_attention_forward"

    def getitem(self: Any, key: str) -> Any:
        return replace(key, original(self, key))

    files = [getattr(module, "__dict__", {}) for module in tuple(sys.modules.values())]
    eager = [(names, names[name]) for names in files if callable(names.get(name))]
    inherited = "__getitem__" not in vars(interface)
    interface.__getitem__ = getitem
    for names, function in eager:
        names[name] = replace("eager", function)
    try:
        yield
    finally:
        for names, function in eager:
            names[name] = function
        if inherited:
            del interface.__getitem__
        else:
            interface.__getitem__ = original


def offloading_hooks(module: Any) -> tuple[Any, ...]:
    """The hooks by which accelerate moves a module of an offloaded model to its device; mostly none.

    Relies on the attribute ``_hf_hook``, and on ``hooks`` of a hook that stands for several in a row; checked
    on transformers 5.23.0 with accelerate 1.15.0.
    """
    hook = vars(module).get("_hf_hook")
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def accumulates_in_accelerate(model: Any) -> bool:
    """Whether accelerate adds to the gradients of a model, so that ``optimizer.step()`` does nothing.

    Relies on ``_is_accelerate_prepared``, which `Accelerator.prepare` sets on models; checked on transformers
    5.23.0 with accelerate 1.15.0.

    Args:
        model: As ``Accelerator.prepare`` returned it.
    """
    library = sys.modules.get("accelerate.state")
    if library is None or not getattr(model, "_is_accelerate_prepared", False):
        return False
    return not library.GradientState().sync_gradients


def is_conv1d(module: Any) -> bool:
    """Whether a module is the linear layer of GPT-2, whose weight is [in, out].

    Relies on the class name ``Conv1D`` in ``transformers.pytorch_utils``; checked on transformers 5.23.0.
    """
    return type(module).__name__ == "Conv1D"


def callbacks_of(trainer: Any) -> list[Any]:
    """The callbacks of a Trainer.

    Relies on ``Trainer.callback_handler.callbacks``; checked on transformers 5.23.0.
    """
    return list(trainer.callback_handler.callbacks)


def writer_of(callback: Any) -> Any:
    """The writer that a callback sends to TensorBoard with, or ``None``.

    Relies on ``TensorBoardCallback.tb_writer``; checked on transformers 5.23.0.
    """
    return getattr(callback, "tb_writer", None)


def logs_to_wandb(callback: Any) -> bool:
    """Whether a callback logs to W&B's current run.

    Relies on the class name ``WandbCallback`` in ``transformers.integrations``; checked on transformers
    5.23.0.
    """
    return any(kind.__name__ == "WandbCallback" for kind in type(callback).__mro__)


def trainer_calling(callback: Any, trainer: Any = None) -> Any:
    """The Trainer that calls a callback just now, or ``None``: no event of a TrainerCallback names it.

    Its callbacks hold the writer of TensorBoard, and it the compiled model. Looks for it among the variables
    ``self`` of the functions that are running. Relies on ``Trainer.callback_handler.callbacks``; checked on
    transformers 5.23.0.

    Args:
        callback: The callback.
        trainer: Look for this one alone, which may call the callback in an outer function.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames else None
        handler = getattr(owner, "__dict__", {}).get("callback_handler")
        known = any(other is callback for other in getattr(handler, "callbacks", ()))
        if known and (trainer is None or owner is trainer):
            return owner
        frame = frame.f_back
    return None
