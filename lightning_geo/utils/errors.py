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

    Most are also the builtin error that says the same: ``except ValueError`` catches a wrong argument too.

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
    """The same where it is of a wrong type."""


class UnknownKeyError(ArgumentError, KeyError):
    """The same where it is a key under which there is nothing, or more than one thing."""

    def __str__(self) -> str:
        """The message as it is: ``KeyError`` shows it in quotation marks."""
        return Exception.__str__(self)


class SettingError(ArgumentError):
    """The same where it shows only beside the model or its data.

    A monitor raises it to the user if it is found before training begins; from then on it costs samples only.
    """


class SettingTypeError(SettingError, ArgumentTypeError):
    """The same where it is of a wrong type."""


class OtherRankError(GeometryError, RuntimeError):
    """What this rank computes with others ended because one of them failed: the reason is theirs."""


class _RaisedAt(Exception):
    """The traceback of an exception that was kept, as text."""


def let_go(error: Exception) -> Exception:
    """Return an exception that can be kept for long: without the frames that raised it.

    A traceback holds every local variable of its frames and of those that called them: the activations of
    all layers, as long as the exception lives. Its text takes its place: ``strict`` still shows where it was.
    """
    if error.__traceback__ is not None and not isinstance(error.__cause__, _RaisedAt):
        with contextlib.suppress(Exception):  # no memory left, say
            text = "".join(traceback.format_exception(error))
            _drop_frames(error)
            error.__cause__ = _RaisedAt(f"\n{text}")
    _drop_frames(error)
    return error


def _drop_frames(error: BaseException | None) -> None:
    """Of an exception and of those that it came from."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = None
            if isinstance(error, AttributeError):
                error.obj = None  # what lacks the attribute: a tensor, say
            waiting += [error.__cause__, error.__context__]


def call_all(*functions: Callable[[], object]) -> None:
    """Call functions one after the other, each whatever those before it raised.

    Args:
        functions: Without arguments.

    Raises:
        Exception: What the last of those that failed raised.
    """
    with contextlib.ExitStack() as stack:
        for function in reversed(functions):
            stack.callback(function)


class RunError(GeometryError, ValueError):
    """A path that is no run, or runs that lack something or do not fit together; written for a person."""


class MissingPathError(RunError, FileNotFoundError):
    """The same where there is nothing at the path, or nothing of a run."""


class DamagedError(GeometryError, ValueError):
    """Stored data that are not what they should be: readers pass them over, or say where they are."""


class MetricError(GeometryError, RuntimeError):
    """A metric from outside whose function or collector failed; its own error is the cause."""
