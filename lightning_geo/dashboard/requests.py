"""Requests to the tab's routes, and their answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend import http_util
from werkzeug.wrappers import Request, Response

from lightning_geo.utils.errors import ArgumentError

__all__ = ["argument", "guarded", "respond", "where"]

_Route = Callable[[Any, Request], Response]


def guarded(route: _Route) -> Callable[..., Any]:
    """A WSGI application of a method; what is asked wrongly is answered in plain text."""

    @wraps(route)
    def answer(self: Any, request: Request) -> Response:
        try:
            return route(self, request)
        except LookupError as error:
            return respond(request, str(error.args[0]), "text/plain", code=404)
        except ValueError as error:
            return respond(request, str(error), "text/plain", code=400)

    return Request.application(answer)  # type: ignore[arg-type]  # a method: it has `self` too


def respond(request: Request, content: Any, kind: str, **options: Any) -> Response:
    """Answer with a content of a MIME type."""
    response: Response = http_util.Respond(request, content, kind, **options)
    return response


def argument(request: Request, name: str) -> str:
    """Return an argument of a request.

    Raises:
        ValueError: If it is missing.
    """
    value = request.args.get(name)
    if value is None:
        raise ArgumentError(f"Expected the argument `{name}`, but it is not in the request.")
    return value


def where(request: Request) -> tuple[Any, str]:
    """Return TensorBoard's context of a request, and its experiment."""
    return plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)
