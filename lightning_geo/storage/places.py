"""Directories and files of runs, on the local disk or behind an fsspec URL."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from lightning_geo.utils.arguments import check_type
from lightning_geo.utils.errors import RunError

__all__ = ["Place", "Remote", "modified", "named", "place", "size_of", "walk"]


@functools.total_ordering
class Remote:
    """A directory or file behind a URL, with the part of ``Path`` that reading and writing runs needs.

    Args:
        url: ``memory://runs/version_0``, ``s3://bucket/runs``, …

    Raises:
        ValueError: If fsspec does not know the protocol.
        ImportError: If the protocol needs a package that is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # type: ignore[import-untyped]  # slow to import, and only URLs need it

        self._fs, self._path = fsspec.core.url_to_fs(url)
        self._url = url.rstrip("/") if url.rstrip("/")[-1:] != ":" else url

    def __fspath__(self) -> str:
        return self._url

    __str__ = __fspath__

    def __repr__(self) -> str:
        return f"Remote({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._url == other._url

    def __lt__(self, other: Any) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self._url}{'' if self._url.endswith('/') else '/'}{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self._path).name

    @property
    def parent(self) -> Remote:
        shorter = self._url.removesuffix(f"/{self.name}")
        return Remote(f"{shorter}//" if shorter.endswith(":/") else shorter)

    def is_file(self) -> bool:
        return bool(self._fs.isfile(self._path))

    def is_dir(self) -> bool:
        return bool(self._fs.isdir(self._path))

    def exists(self) -> bool:
        return bool(self._fs.exists(self._path))

    def is_symlink(self) -> bool:
        return False

    def resolve(self) -> Remote:
        return self

    def is_relative_to(self, other: Any) -> bool:
        return str(self).startswith(str(other))

    def iterdir(self) -> Iterator[Remote]:
        self._fs.invalidate_cache()
        return (self._of(path) for path in self._fs.ls(self._path, detail=False))

    def glob(self, pattern: str) -> Iterator[Remote]:
        # fsspec caches listings, which would hide files that others have written since
        self._fs.invalidate_cache()
        return (self._of(path) for path in self._fs.glob(f"{self._path.rstrip('/')}/{pattern}"))

    def rglob(self, pattern: str) -> Iterator[Remote]:
        return self.glob(f"**/{pattern}")

    def walk(self) -> Iterator[tuple[Remote, list[str]]]:
        """Yield each directory and the names of its files."""
        self._fs.invalidate_cache()
        for folder, _, files in self._fs.walk(self._path):
            yield self._of(folder), list(files)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        self._fs.makedirs(self._path, exist_ok=exist_ok)

    def open(self, mode: str = "rb") -> BinaryIO:
        file: BinaryIO = self._fs.open(self._path, mode)
        return file

    def write_bytes(self, content: bytes) -> None:
        self._fs.pipe_file(self._path, content)

    def size(self) -> int:
        """Bytes of the file."""
        self._fs.invalidate_cache()
        return int(self._fs.size(self._path))

    def modified(self) -> float:
        """Time of the last write in seconds, 0 if the file system does not record it."""
        try:
            return float(self._fs.modified(self._path).timestamp())
        except (NotImplementedError, AttributeError, OSError):
            return 0.0

    def _of(self, path: str) -> Remote:
        below = path.rstrip("/").removeprefix(self._path.rstrip("/")).lstrip("/")
        return self / below if below else self


Place = Path | Remote


def place(path: str | os.PathLike[str]) -> Place:
    """Return the place that a path or URL names.

    Raises:
        RunError: If it is a URL that fsspec does not know.

    Example:
        >>> place("runs") / "version_0" == Path("runs/version_0")
        True
        >>> str(place("memory://runs") / "version_0")
        'memory://runs/version_0'
    """
    check_type("path", path, (str, os.PathLike), "a path or a URL")
    text = os.fspath(path)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(path)
    if scheme in ("file", "local"):
        return Path(rest)
    try:
        return Remote(text)
    except ValueError as error:
        raise RunError(f"Cannot open {text!r}: {error}.") from error


def walk(root: Place) -> Iterator[tuple[Place, list[str]]]:
    """Yield the directories at and below a root, sorted, with the names of their files."""
    if isinstance(root, Remote):
        yield from sorted(root.walk())
        return
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        yield Path(folder), files


def named(where: Place) -> Path:
    """Return an absolute path by which to name a place.

    Example:
        >>> named(place("memory://runs/version_0"))
        PosixPath('/memory/runs/version_0')
    """
    if isinstance(where, Remote):
        return Path("/", *str(where).split("://"))
    return Path(os.path.abspath(where))


def size_of(file: Place) -> int:
    """Return the size of a file in bytes."""
    return file.size() if isinstance(file, Remote) else file.stat().st_size


def modified(file: Place) -> float:
    """Return the time of the last write to a file, in seconds."""
    return file.modified() if isinstance(file, Remote) else file.stat().st_mtime
