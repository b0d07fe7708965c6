"""A twin: a copy of a module tree over the same parameters, run once and discarded."""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

from lightning_geo.observe.replay.torchscript import is_scripted
from lightning_geo.observe.replay.tree_copy import WithoutGraph, copy_tree
from lightning_geo.utils._lightning import is_lightning, set_trainer, trainer_of
from lightning_geo.utils._torch import (
    FORWARD_HOOKS,
    OTHER_HOOKS,
    compiled_from,
    forward_hooks,
    is_compiled_function,
    parameters_of,
)
from lightning_geo.utils._transformers import offloading_hooks

__all__ = ["foreign_among", "foreign_hooks", "needed_hooks", "quiet", "twin_of"]

#: Packages whose hooks belong to a model's computation: weight norms and masks, adapters, offloading.
_COMPUTING = (
    "torch.nn", "torch.ao", "torch.distributed", "torchao", "peft", "adapters", "accelerate", "transformers",
    "bitsandbytes", "optimum", "auto_gptq", "gptqmodel", "hqq",
)  # fmt: skip
#: Packages whose hooks gather parameters, or take times: replays do without them.
_STRATEGIES = ("deepspeed",)
#: Classes in which accelerate keeps offloaded weights. It only reads these, so that a twin shares them.
_READ_ONLY = ("OffloadedWeightsLoader", "PrefixedDataset")


def twin_of(
    model: nn.Module,
    own: Collection[str] | None = (),
    *,
    replaced: Mapping[int, nn.Parameter] | None = None,
    unwrapped: Sequence[tuple[nn.Module, nn.Module]] = (),
) -> nn.Module:
    """Copy a module tree; its parameters are new objects over the same storage.

    The copy has its own buffers, attributes and generators. The user's hooks are left out, and every
    LightningModule in the copy is :func:`quiet`.

    Args:
        model: The module to copy.
        own: Names of parameters to copy too, because the forward pass writes them; None for all.
        replaced: By identity, what stands in the copy for tensors among parameters and attributes.
        unwrapped: Modules that are not copied, outer ones first, with the module in each that replaces it.

    Raises:
        Exception: If an attribute refuses to be copied (locks, files, process groups).
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        memo[id(parameter)] = _parameter_twin(parameter, copied=own is None or name in own)
    memo.update(replaced or {})
    wrappers = {id(wrapper) for wrapper, _ in unwrapped}
    modules = [module for module in model.modules() if id(module) not in wrappers]
    hooks: list[tuple[OrderedDict[int, Any], OrderedDict[int, Any]]] = []
    for module in modules:
        if is_scripted(module):
            # A copy of TorchScript would share no parameters: it is used itself, and restored afterwards.
            memo[id(module)] = module
            continue
        for name, value in vars(module).items():
            if name in FORWARD_HOOKS:
                hooks.append((value, memo.setdefault(id(value), OrderedDict())))
            elif name in OTHER_HOOKS:
                memo[id(value)] = OrderedDict()
            elif isinstance(value, (Dataset, DataLoader, types.ModuleType)):
                memo[id(value)] = value
        _exchange(module, memo)
    with WithoutGraph():
        for wrapper, inside in reversed(unwrapped):
            memo[id(wrapper)] = copy_tree(inside, memo)
        twin = copy_tree(model, memo)
        for theirs, ours in hooks:
            ours.update({k: copy.deepcopy(_rebound(h, memo), memo) for k, h in needed_hooks(theirs).items()})
        for module in modules:
            if not is_scripted(module):
                _rebind_functions(module, memo)
    for module in modules:
        if is_lightning(module):
            set_trainer(memo[id(module)], trainer_of(module))  # `__getstate__` dropped the trainer
            quiet(memo[id(module)])
    return twin


def _exchange(module: nn.Module, memo: dict[int, Any]) -> None:
    """Put what a module shares with its copy, or what stands there instead, into the memo of copies."""
    place = parameters_of(module)
    if type(place) not in (dict, OrderedDict):  # DeepSpeed's gathers what is read from it
        memo[id(place)] = {name: memo.get(id(p), p) for name, p in place.items()}
    for part in offloading_hooks(module):
        _share_weights(getattr(part, "weights_map", None), memo)
    trainer = trainer_of(module)
    if trainer is not None:
        memo[id(trainer)] = _quiet_trainer(trainer)


def _parameter_twin(parameter: nn.Parameter, *, copied: bool) -> nn.Parameter:
    # A subclass (quantised, sharded) cannot be rebuilt from its data: share it, and copy a lazy one.
    if type(parameter) is not nn.Parameter or is_lazy(parameter):
        return copy.deepcopy(parameter) if is_lazy(parameter) else parameter
    # `detach` would share the version counter: a change of the twin in place would count as the original's.
    data = parameter.data.clone() if copied else parameter.data
    twin = nn.Parameter(data, requires_grad=parameter.requires_grad)
    vars(twin).update(vars(parameter))
    return twin


def _share_weights(weights: Any, memo: dict[int, Any]) -> None:
    while weights is not None and type(weights).__name__ in _READ_ONLY:
        memo[id(weights)] = weights
        weights = getattr(weights, "dataset", None)
    if isinstance(weights, dict):
        memo[id(weights)] = weights


# -- hooks


def needed_hooks(hooks: dict[int, Any]) -> dict[int, Any]:
    """Return the hooks that are part of the model's computation."""
    return {key: hook for key, hook in hooks.items() if _package_of(hook).startswith(_COMPUTING)}


def foreign_hooks(model: nn.Module) -> dict[str, str]:
    """Return the user's forward hooks by module path; a replay leaves them out."""
    by_path = {}
    for path, module in model.named_modules():
        for hooks in forward_hooks(module) if not is_scripted(module) else ():
            for hook in foreign_among(hooks).values():
                if not _package_of(hook).startswith(_STRATEGIES):
                    by_path[path] = getattr(_function_of(hook), "__qualname__", repr(hook))
    return by_path


def foreign_among(hooks: dict[int, Any]) -> dict[int, Any]:
    """Return the hooks that belong neither to the model's computation nor to this package."""
    own = ("lightning_geo", *_COMPUTING)
    return {key: hook for key, hook in hooks.items() if not _package_of(hook).startswith(own)}


def _function_of(hook: Any) -> Any:
    while isinstance(hook, functools.partial):
        hook = hook.func
    hook = getattr(hook, "__func__", hook)
    return hook if hasattr(hook, "__qualname__") else type(hook)


def _package_of(hook: Any) -> str:
    return getattr(_function_of(hook), "__module__", None) or ""


# -- functions that hold a module of the tree


def _rebind_functions(module: nn.Module, memo: dict[int, Any]) -> None:
    """Make functions among a copy's attributes, such as a replaced ``forward``, use the copy's modules."""
    twin = memo[id(module)]
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType):
            vars(twin)[name] = _rebound(value, memo)


def _rebound(function: Any, memo: dict[int, Any]) -> Any:
    """Return a function that refers to the copy's modules; itself if it refers to none of the original's."""
    if not isinstance(function, types.FunctionType):
        return function
    if is_compiled_function(function):
        inner = compiled_from(function)
        return _rebound(inner, memo) if isinstance(inner, types.FunctionType) else copy.deepcopy(inner, memo)
    cells = function.__closure__ or ()
    if id(function) in memo or not any(_holds(cell, memo) for cell in cells):
        return memo.get(id(function), function)
    copies = tuple(types.CellType() for _ in cells)
    rebound = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, copies
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    vars(rebound).update({k: v for k, v in vars(function).items() if k != "__wrapped__"})
    memo[id(function)] = rebound
    for new, old in zip(copies, cells, strict=True):
        content = _content(old)
        is_function = isinstance(content, types.FunctionType)
        new.cell_contents = _rebound(content, memo) if is_function else copy.deepcopy(content, memo)
    return rebound


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is empty: its variable was never assigned
        return None


def _holds(cell: Any, memo: dict[int, Any]) -> bool:
    """Whether a closure's cell holds a copied module, its method, or a function closed over one."""
    content = _content(cell)
    if isinstance(content, types.FunctionType):
        return any(_holds(inner, memo) for inner in content.__closure__ or () if inner is not cell)
    owner = getattr(content, "__self__", content)
    return isinstance(owner, nn.Module) and memo.get(id(owner), owner) is not owner


# -- LightningModules


def quiet(module: nn.Module) -> None:
    """Disconnect a LightningModule from its trainer, so that it neither logs nor optimizes.

    It can still read the trainer's numbers, names and flags.
    """
    place, inert, count = vars(module), _Inert(), 1
    trainer = trainer_of(module)
    if isinstance(trainer, _QuietTrainer):
        return
    if trainer is not None:
        set_trainer(module, _QuietTrainer(trainer))
        count = len(getattr(trainer, "optimizers", None) or [None])
    for name in (
        "log", "log_dict", "print", "manual_backward", "toggle_optimizer", "untoggle_optimizer",
        "clip_gradients", "lr_scheduler_step",
    ):  # fmt: skip
        place[name] = _nothing
    place["optimizers"] = place["lr_schedulers"] = lambda *_, **__: [inert] * count if count > 1 else inert
    place["all_gather"] = lambda data, *_, **__: data


def _nothing(*_: Any, **__: Any) -> None:
    """Replaces methods that would reach the trainer."""


class _Inert:
    """Accepts any attribute access and call, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _QuietTrainer:
    """Exposes a trainer's numbers, names and flags; everything else is inert."""

    def __init__(self, trainer: Any) -> None:
        self._real = trainer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._real, name)
        plain = value is None or isinstance(value, (bool, int, float, str, torch.device))
        return value if plain else _Inert()

    def __deepcopy__(self, memo: dict[int, Any]) -> _QuietTrainer:
        return self


def _quiet_trainer(trainer: Any) -> _QuietTrainer:
    return trainer if isinstance(trainer, _QuietTrainer) else _QuietTrainer(trainer)
