"""Distinguishes inputs that are data from inputs computed with parameters, which training changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_geo.observe.replay.call_hooks import on_call
from lightning_geo.observe.replay.undisturbed_run import Call, replay_depth
from lightning_geo.utils._torch import parameters_of
from lightning_geo.utils.errors import GeometryError

__all__ = ["Dependence", "NoDataError", "depends_on_graph"]


class NoDataError(GeometryError, LookupError):
    """No call of the run starts from data, so that none can be replayed."""


class Dependence:
    """Distinguishes calls on data from calls whose inputs depend on parameters.

    An input is data if it is not floating point, lies in the memory of the step's batch, or existed before
    any module with parameters ran in the step. Any other input counts as dependent on parameters.

    Args:
        root: The LightningModule.
        models: Modules in it that may be observed, by name.
    """

    def __init__(self, root: nn.Module, models: Mapping[str, nn.Module]) -> None:
        paths = {id(module): path for path, module in root.named_modules()}
        self._paths = {name: paths.get(id(model), "") for name, model in models.items()}
        #: modules beside the models and around them, by path
        self._parts: dict[str, nn.Module] = {}
        self._own = False
        for path in {"", *self._paths.values()}:
            around = root
            for part in path.split(".") if path else [""]:
                self._own = self._own or bool(parameters_of(around))
                prefix = f"{paths[id(around)]}." if around is not root else ""
                beside = {f"{prefix}{name}": m for name, m in around.named_children()}
                self._parts |= {n: m for n, m in beside.items() if any(True for _ in m.parameters())}
                around = getattr(around, part, around)
        self._ran: set[str] = set()
        self._batch: set[int] = set()
        #: names of models with a call whose inputs depend on parameters
        self.dependent: set[str] = set()

    def watch(self) -> list[Callable[[], None]]:
        """Watch the modules beside the models; returns functions that undo it."""
        return [on_call(module, partial(self._runs, path)) for path, module in self._parts.items()]

    def _runs(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not replay_depth():
            self._ran.add(path)

    def step_begins(self, batch: Any) -> None:
        """Take a step's batch as data, and forget which modules ran before.

        Args:
            batch: The step's batch.
        """
        self._ran.clear()
        self._batch = {_memory(x) for x in Call((batch,)).tensors()}

    def noting(self, name: str) -> Callable[[tuple[Any, ...], dict[str, Any]], None]:
        """Return a function that checks the inputs of a model's calls."""

        def note(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with contextlib.suppress(Exception):  # an error in a hook would abort the user's step
                self.note(name, args, kwargs)

        return note

    def note(self, name: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Check one call of a model, and return whether its inputs may depend on parameters.

        Args:
            name: The model's name; None for the LightningModule itself.
            args: The call's positional arguments.
            kwargs: The call's keyword arguments.
        """
        if replay_depth():
            return False
        tensors = Call(args, kwargs).tensors()
        dependent = depends_on_graph(args, kwargs)
        unknown = [x for x in tensors if x.is_floating_point() or x.is_complex()]
        if not dependent and any(_memory(x) not in self._batch for x in unknown):
            path = "" if name is None else self._paths[name]
            others = [ran for ran in self._ran if not path or not _within(ran, path)]
            dependent = bool(others) or (self._own and bool(path))
        if dependent and name is not None:
            self.dependent.add(name)
        return dependent


def depends_on_graph(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an input of a call is a parameter, or was computed from one with gradients on."""
    return any(x.grad_fn is not None or isinstance(x, nn.Parameter) for x in Call(args, kwargs).tensors())


def _within(path: str, other: str) -> bool:
    """Whether one of two modules contains the other, or both are the same."""
    return not path or not other or f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr() if x.device.type != "meta" else 0
