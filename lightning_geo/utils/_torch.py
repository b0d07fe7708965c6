"""Private and fragile names of PyTorch, each behind one function.

An update of torch that renames one of them is repaired here. ``tests/test_private_names.py`` fails for every
use of such a name elsewhere in the package.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

# called while a model runs, hence handed on without a function around it; checked on torch 2.13.0
from torch.overrides import _get_current_function_mode as innermost_function_mode

__all__ = [
    "FORWARD_HOOKS",
    "OTHER_HOOKS",
    "WRAPPERS",
    "buffers_of",
    "class_name",
    "compiled_call",
    "compiled_from",
    "compiler_stance",
    "filter_forward_hooks",
    "flex_calls",
    "flex_masks_nothing",
    "flex_operator_replaced",
    "flex_output",
    "flex_scores_unchanged",
    "forward_hooks",
    "global_forward_hooks",
    "innermost_function_mode",
    "is_compiled_frame",
    "is_compiled_function",
    "is_compiled_module",
    "parameters_of",
    "remove_forward_hook",
    "script_attribute",
    "script_attributes",
    "set_compiled_call",
    "set_script_attribute",
    "unwrapped",
    "varlen_operators",
    "version_of",
    "without_backward_hooks",
    "without_function_modes",
]

#: Context in which neither torch function modes nor tensor subclasses see what is called. It is entered for
#: every module that an observed model runs, hence the class itself and no function. Checked on torch 2.13.0.
without_function_modes = torch._C.DisableTorchFunction

# -- modules

#: Components that torch's wrappers add to the path of a module: compile, FSDP, checkpointing, DDP. Checked on
#: torch 2.13.0.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"})
#: Attributes of a module that hold hooks: those that run with a forward, and others. Checked on torch 2.13.0.
FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
OTHER_HOOKS = (
    "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def unwrapped(module: nn.Module) -> Any:
    """The module that ``torch.compile`` wrapped, or the module itself.

    Relies on ``OptimizedModule._orig_mod``; checked on torch 2.13.0.
    """
    return getattr(module, "_orig_mod", module)


def class_name(module: nn.Module) -> str:
    """The class of a module as the user knows it: ``torch.compile`` and ``fully_shard`` put their own on top.

    Relies on ``fully_shard`` naming its classes ``FSDP…``; checked on torch 2.13.0.
    """
    classes = type(unwrapped(module)).__mro__
    return next(c.__name__ for c in classes if not c.__name__.startswith("FSDP"))


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The dictionary in which a module keeps its own parameters, those registered as ``None`` included.

    Relies on ``Module._parameters``; checked on torch 2.13.0.
    """
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The dictionary in which a module keeps its own buffers.

    Relies on ``Module._buffers``; checked on torch 2.13.0.
    """
    return module._buffers


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place.

    Relies on ``Tensor._version``; checked on torch 2.13.0.

    Raises:
        RuntimeError: For a tensor made in inference mode, whose changes torch does not count.
    """
    return tensor._version


# -- hooks of modules


def forward_hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """The dictionaries in which a module keeps its hooks before and after forward.

    Relies on ``Module._forward_pre_hooks`` and ``_forward_hooks``; checked on torch 2.13.0.
    """
    return module._forward_pre_hooks, module._forward_hooks


def filter_forward_hooks(module: nn.Module, keep: Callable[[dict[int, Any]], dict[int, Any]]) -> None:
    """Give a module new dictionaries with some of its forward hooks; the earlier ones stay as they are.

    Relies on ``Module._forward_pre_hooks`` and ``_forward_hooks``; checked on torch 2.13.0.
    """
    module._forward_hooks = OrderedDict(keep(module._forward_hooks))
    module._forward_pre_hooks = OrderedDict(keep(module._forward_pre_hooks))


def remove_forward_hook(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Take a function off a module wherever it is a forward hook, its options included.

    For a copy of a module, whose hooks no handle can remove. Relies on the dictionaries of forward hooks and
    of their options, ``Module._forward…_hooks…``; checked on torch 2.13.0.
    """
    for hooks in forward_hooks(module):
        for key in [key for key, candidate in hooks.items() if candidate is hook]:
            del hooks[key]
    for keys in (
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    ):
        for key in [k for k in keys if k not in {**module._forward_pre_hooks, **module._forward_hooks}]:
            del keys[key]


def without_backward_hooks(module: nn.Module) -> None:
    """Give a module new, empty dictionaries of backward hooks; the earlier ones stay as they are.

    Relies on ``Module._backward_hooks`` and ``_backward_pre_hooks``; checked on torch 2.13.0.
    """
    module._backward_hooks = OrderedDict()
    module._backward_pre_hooks = OrderedDict()


def global_forward_hooks() -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    """Hooks of all modules of the process: before forward, after it, and which of these run whatever happens.

    Relies on ``torch.nn.modules.module._global_forward…_hooks…``; checked on torch 2.13.0.
    """
    return (
        _module._global_forward_pre_hooks,
        _module._global_forward_hooks,
        _module._global_forward_hooks_always_called,
    )


# -- compiled code


def is_compiled_module(module: nn.Module) -> bool:
    """Whether ``torch.compile(module)`` or ``module.compile()`` made it what it is.

    Relies on ``OptimizedModule._orig_mod`` and ``Module._compiled_call_impl``; checked on torch 2.13.0.
    """
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def compiled_call(module: nn.Module) -> Callable[..., Any] | None:
    """Return the compiled call of a module that was compiled by ``module.compile()``; it includes its hooks.

    Relies on ``Module._compiled_call_impl``; checked on torch 2.13.0.
    """
    call: Callable[..., Any] | None = module._compiled_call_impl
    return call


def set_compiled_call(module: nn.Module, call: Callable[..., Any]) -> None:
    """Let something else run in place of a module that was compiled by ``module.compile()``.

    Relies on ``Module._compiled_call_impl``; checked on torch 2.13.0.
    """
    module._compiled_call_impl = call


def is_compiled_function(function: Any) -> bool:
    """Whether ``torch.compile`` made it, and not ``torch.compiler.disable``, which marks functions alike.

    Relies on the marks ``_torchdynamo_orig_callable`` and ``_torchdynamo_disable``; checked on torch 2.13.0.
    """
    return hasattr(function, "_torchdynamo_orig_callable") and not getattr(
        function, "_torchdynamo_disable", False
    )


def compiled_from(function: Any) -> Any:
    """Return the function that was compiled.

    Relies on the mark ``_torchdynamo_orig_callable``; checked on torch 2.13.0.
    """
    return vars(function)["_torchdynamo_orig_callable"]


def compiler_stance() -> str | None:
    """How compiled code runs now; ``None`` while the compiler is not loaded, which takes seconds.

    There is a public ``torch.compiler.set_stance``, but nothing that tells the stance. Relies on
    ``torch._dynamo.eval_frame._stance``; checked on torch 2.13.0.
    """
    if "torch._dynamo" not in sys.modules:
        return None
    current = getattr(torch._dynamo.eval_frame, "_stance", None)
    return getattr(current, "stance", "default")


_COMPILER = os.path.join("torch", "_dynamo", "eval_frame.py")


def is_compiled_frame(frame: FrameType | None) -> bool:
    """Whether compiled code called what runs in a frame, although it runs eagerly now.

    Relies on ``torch/_dynamo/eval_frame.py``, where compiled code is entered; checked on torch 2.13.0.
    """
    while frame is not None:
        if frame.f_code.co_filename.endswith(_COMPILER):
            return True
        frame = frame.f_back
    return False


# -- TorchScript


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


# -- attention functions


def varlen_operators() -> tuple[Any, Any]:
    """The operators behind ``varlen_attn`` and ``varlen_attn_out``; ``None`` for each where torch has none.

    Relies on ``torch.ops.torch_attn._varlen_attn`` and ``_varlen_attn_out``, which importing
    ``torch.nn.attention.varlen`` registers; checked on torch 2.13.0.
    """
    try:
        import torch.nn.attention.varlen

        return torch.ops.torch_attn._varlen_attn, torch.ops.torch_attn._varlen_attn_out
    except (ImportError, AttributeError):
        return None, None


_FLEX = "torch.nn.attention.flex_attention"
#: The context, by its name in that module, in which ``flex_attention`` computes: in torch 2.13, and before.
_FLEX_CONTEXTS = ("setup_compilation_env", "_set_compilation_env")


@contextlib.contextmanager
def flex_calls(
    around: Callable[[AbstractContextManager[Any], FrameType], AbstractContextManager[Any]],
) -> Iterator[None]:
    """Put a context of one's own around what every call of ``flex_attention`` computes.

    A model that imported the function by name keeps the original whatever is assigned in torch's module. The
    original looks up the context in which it computes there, and that is replaced: it opens once arguments
    were checked, and closes once the output is known.

    Relies on ``setup_compilation_env``, before torch 2.13 ``_set_compilation_env``, in
    ``torch.nn.attention.flex_attention``; checked on torch 2.13.0. Without it no call is seen.

    Args:
        around: Given torch's own context and the frame of the function, returns what is entered instead.
    """
    library = sys.modules.get(_FLEX)
    function = getattr(library, "flex_attention", None)
    name = next((name for name in _FLEX_CONTEXTS if hasattr(library, name)), "")
    original = getattr(library, name, None)
    code = getattr(function, "__code__", None)
    if library is None or original is None or code is None:
        yield
        return

    def computing(*args: Any, **kwargs: Any) -> Any:
        context, frame = original(*args, **kwargs), sys._getframe(1)
        if frame.f_code is not code or torch.compiler.is_compiling():
            return context
        return around(context, frame)

    setattr(library, name, computing)
    try:
        yield
    finally:
        setattr(library, name, original)


def flex_output(frame: FrameType) -> Any:
    """Return the result of ``flex_attention`` in its frame; ``None`` before there is one.

    Relies on its local variable ``out``; checked on torch 2.13.0.
    """
    return frame.f_locals.get("out")


@contextlib.contextmanager
def flex_operator_replaced(replace: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Let ``flex_attention`` compute with another function than its operator.

    Relies on ``flex_attention_hop`` in ``torch.nn.attention.flex_attention``; checked on torch 2.13.0.

    Args:
        replace: Given the operator, returns what is called instead.
    """
    library: Any = sys.modules[_FLEX]
    original = library.flex_attention_hop
    library.flex_attention_hop = replace(original)
    try:
        yield
    finally:
        library.flex_attention_hop = original


def flex_scores_unchanged(score_mod: Any) -> bool:
    """Whether it is what ``flex_attention`` takes where no ``score_mod`` was given.

    Relies on ``_identity`` in ``torch.nn.attention.flex_attention``; checked on torch 2.13.0.
    """
    return score_mod is getattr(sys.modules[_FLEX], "_identity", None)


def flex_masks_nothing(mask: Any) -> bool:
    """Whether it is what ``flex_attention`` takes where no ``block_mask`` was given.

    Relies on ``_LARGE_SPARSE_BLOCK_SIZE`` in ``torch.nn.attention.flex_attention``; checked on torch 2.13.0.
    """
    library: Any = sys.modules[_FLEX]
    one_block = mask.BLOCK_SIZE[0] == getattr(library, "_LARGE_SPARSE_BLOCK_SIZE", 1 << 30)
    return one_block and mask.mask_mod is library.noop_mask
