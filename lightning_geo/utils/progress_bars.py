"""Log lines beside a progress bar, rather than in the middle of it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

__all__ = ["LineLogger", "beside_bars", "script_logger"]

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # it takes no type on Python 3.10


class LineLogger(_Adapter):
    """A logger each of whose lines stands on a line of its own, whatever bar the terminal shows.

    Where nobody has set logging up, its lines go to ``sys.stderr``: Python itself would drop those of INFO.
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log a line, see :meth:`logging.Logger.log`."""
        if self.isEnabledFor(level):
            with beside_bars(self.logger):
                if self.logger.hasHandlers():
                    self.logger.log(level, msg, *args, **kwargs)
                elif sys.stderr is not None:  # a program without a console has none
                    sys.stderr.write(f"{str(msg) % args if args else msg}\n")


def script_logger() -> LineLogger:
    """Return the logger of the package, for loops whose authors need not know of logging.

    Its level is INFO unless the user sets another one, before or after.
    """
    logger = logging.getLogger("lightning_geo")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    return LineLogger(logger)


@contextlib.contextmanager
def beside_bars(log: logging.Logger | None = None) -> Iterator[None]:
    """Keep progress bars out of the way of what is written to the terminal.

    A bar leaves the cursor at its end, where others would go on writing. A bar of tqdm is therefore cleared,
    and drawn again on the next line. A display of rich replaces ``sys.stdout`` and ``sys.stderr`` by files
    that print above it; handlers that are older than the display hold the files behind these, so that they
    write to the replacements meanwhile. Neither package is imported: without it there is no bar. Checked on
    tqdm 4.70 and rich 15.0.

    Args:
        log: The logger that writes; ``None`` for something that writes to ``sys.stderr``.
    """
    with contextlib.ExitStack() as stack:
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
        if tqdm is not None:
            stack.enter_context(tqdm.external_write_mode(file=sys.stderr))
        for handler in _stream_handlers(log):
            for stream in (sys.stdout, sys.stderr):
                if getattr(stream, "rich_proxied_file", None) is handler.stream:
                    behind = handler.setStream(stream)
                    stack.callback(handler.setStream, behind)
                    break
        yield


def _stream_handlers(log: logging.Logger | None) -> Iterator[logging.StreamHandler[Any]]:
    """The handlers to which a logger's lines go, if they write to a stream."""
    while log is not None:
        for handler in log.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                yield handler
        log = log.parent if log.propagate else None
