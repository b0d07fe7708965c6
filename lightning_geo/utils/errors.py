"""Errors of the package, all of one base, and exceptions that can be kept."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "DamagedError",
    "GeometryError",
    "MetricError",
    "MissingPathError",
    "OtherRankError",
    "RunError",
    "SettingError",
    "SettingTypeError",
    "UnknownKeyError",
    "call_all",
    "let_go",
]


class GeometryError(Exception):
    """The base of the errors that this package raises for an argument, a path, a run, a model or a metric.

    Most are also a builtin error of the same meaning: ``except ValueError`` catches a wrong argument too.

    Example:
        >>> import lightning_geo
        >>> try:
        ...     lightning_geo.load_history("nowhere")
        ... except lightning_geo.GeometryError as error:
        ...     print(isinstance(error, FileNotFoundError), error)
        True Expected `path` to be a run's directory, but 'nowhere' does not exist.
    """


class ArgumentError(GeometryError, ValueError):
    """A wrong argument of any function or class; where it fails a sample, it costs that sample only."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of a wrong type."""


class UnknownKeyError(ArgumentError, KeyError):
    """A key under which there is nothing, or more than one thing."""

    def __str__(self) -> str:
        """The message as it is: ``KeyError`` shows it in quotation marks."""
        return Exception.__str__(self)


class SettingError(ArgumentError):
    """A wrong argument of a monitor that shows only once the model or its data are known.

    A monitor raises it to the user if it is found before training begins; from then on it costs samples only.
    """


class SettingTypeError(SettingError, ArgumentTypeError):
    """A setting of a wrong type."""


class OtherRankError(GeometryError, RuntimeError):
    """Another rank failed, and ended a computation that this rank takes part in; that rank has the reason."""


class _RaisedAt(Exception):
    """The traceback of an exception that was kept, as text."""


def let_go(error: Exception) -> Exception:
    """Return an exception that can be kept for long: without the frames that raised it.

    A traceback holds every local variable of its frames and of those that called them: the activations of
    all layers, as long as the exception lives. Its text replaces it, so ``strict`` still shows the place.
    """
    if error.__traceback__ is not None and not isinstance(error.__cause__, _RaisedAt):
        with contextlib.suppress(Exception):  # out of memory, for instance
            text = "".join(traceback.format_exception(error))
            _drop_frames(error)
            error.__cause__ = _RaisedAt(f"\n{text}")
    _drop_frames(error)
    return error


def _drop_frames(error: BaseException | None) -> None:
    """Drop the frames of an exception and of all exceptions behind it."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = None
            if isinstance(error, AttributeError):
                error.obj = None  # the object without the attribute, such as a tensor
            waiting += [error.__cause__, error.__context__]


def call_all(*functions: Callable[[], object]) -> None:
    """Call functions one after the other, each whatever those before it raised.

    Args:
        functions: Without arguments.

    Raises:
        Exception: The error of the last function that failed.
    """
    with contextlib.ExitStack() as stack:
        for function in reversed(functions):
            stack.callback(function)


class RunError(GeometryError, ValueError):
    """A path that is no run, or runs that lack something or do not fit together."""


class MissingPathError(RunError, FileNotFoundError):
    """A path at which there is nothing, or no run."""


class DamagedError(GeometryError, ValueError):
    """Damaged stored data: readers skip them, or name their place."""


class MetricError(GeometryError, RuntimeError):
    """A metric from outside whose function or collector failed; its own error is the cause."""
