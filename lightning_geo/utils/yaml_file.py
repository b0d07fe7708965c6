"""A YAML file that a person wrote: its content, the line of every entry, and errors that name them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_geo.utils.errors import ArgumentError, RunError
from lightning_geo.utils.formatting import did_you_mean

__all__ = ["EntryError", "YamlFile", "as_list", "as_mapping", "check_keys", "parse_yaml", "read_yaml"]

_MOST = 100_000  # entries: aliases of aliases make a short text endless

#: Numbers that mean the same to everyone: YAML 1.1 reads 010 as 8, 1:30 as 90 and 1e5 as text.
_DECIMAL = re.compile(
    r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


class EntryError(ArgumentError):
    """A value that does not fit, and where it stands.

    Args:
        message: The message, without the place.
        keys: Keys and indices that lead to the value, from whatever the check was given.
    """

    def __init__(self, message: str, *keys: str | int) -> None:
        super().__init__(message)
        self.keys = keys


@dataclass(frozen=True)
class YamlFile:
    """The content of a file, and where each entry stands.

    Args:
        path: As it was named.
        content: Mappings, lists, text, numbers, dates, booleans and None.
        source: The bytes of the file.
        lines: Keys and indices that lead to an entry -> its line, from 1.
    """

    path: str
    content: Any
    source: bytes = b""
    lines: Mapping[tuple[str | int, ...], int] = field(default_factory=dict)

    def line(self, *keys: str | int) -> int:
        """Return the line of an entry, or of the innermost one around it that is in the file."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)

    def error(self, error: Exception, *keys: str | int) -> RunError:
        """Return an error that names file and line.

        Args:
            error: What is wrong; an :class:`EntryError` says where below ``keys``.
            keys: Keys and indices that lead to the entry.
        """
        inner = error.keys if isinstance(error, EntryError) else ()
        return RunError(f"{self.path!r}, line {self.line(*keys, *inner)}: {error}")


def read_yaml(path: str | os.PathLike[str]) -> YamlFile:
    """Read a file.

    Args:
        path: The file.

    Raises:
        RunError: If it cannot be read, or is not valid, as in :func:`parse_yaml`.
    """
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        raise RunError(f"Cannot read {os.fspath(path)!r}: {error.strerror}.") from error
    return parse_yaml(source, os.fspath(path))


def parse_yaml(source: bytes, path: str) -> YamlFile:
    """Parse the bytes of a file.

    A key that stands twice, a key that is no text, and a number that YAML reads as another one than people
    do (``010``, ``1:30``) are refused.

    Args:
        source: The bytes.
        path: How errors name the file.

    Raises:
        RunError: If it is not valid; the message names file and line.

    Example:
        >>> file = parse_yaml(b"rules:\\n  - name: a\\n    at_most: 3\\n", "rules.yaml")
        >>> file.content, file.line("rules", 0, "at_most")
        ({'rules': [{'name': 'a', 'at_most': 3}]}, 3)
    """
    import yaml

    try:
        text = source.decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[tuple[str | int, ...], int] = {}
        content = None if node is None else _Reader(lines).value(node, (), ())
    except UnicodeDecodeError as error:
        line = source[: error.start].count(b"\n") + 1
        raise RunError(f"{path!r}, line {line}: not valid YAML: not UTF-8 text.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise RunError(f"{path!r}{where}: not valid YAML: {error.problem or error.context}.") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise RunError(
            f"{path!r}, line {line}: not valid YAML: the character U+{ord(text[error.position]):04X} is "
            "not allowed."
        ) from error
    except RecursionError as error:
        raise RunError(f"{path!r}: not valid YAML: nested too deeply.") from error
    except _LineError as error:
        raise RunError(f"{path!r}, line {error.line}: {error}") from error
    return YamlFile(path, content, source, lines)


class _LineError(ValueError):
    def __init__(self, message: str, node: Any) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1


class _Reader:
    """Makes values of YAML's nodes, and notes their lines."""

    def __init__(self, lines: dict[tuple[str | int, ...], int]) -> None:
        import yaml

        self._lines = lines
        self._scalars = yaml.constructor.SafeConstructor()

    def value(self, node: Any, keys: tuple[str | int, ...], around: tuple[int, ...]) -> Any:
        self._lines.setdefault(keys, node.start_mark.line + 1)
        if id(node) in around:
            raise _LineError(
                "Expected each alias to name an entry elsewhere but got one to an entry that holds it, which "
                "has no end. Write the values out.",
                node,
            )
        if len(self._lines) > _MOST:
            raise _LineError(
                f"Expected at most {_MOST:,} entries but got more. An alias counts for all that it names: "
                "use fewer of them.",
                node,
            )
        around = (*around, id(node))
        if node.id == "mapping":
            return {key: self.value(v, (*keys, key), around) for key, v in self._pairs(node, keys)}
        if node.id == "sequence":
            return [self.value(item, (*keys, i), around) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _pairs(self, node: Any, keys: tuple[str | int, ...]) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            key = self._scalar(key_node) if key_node.id == "scalar" else None
            if not isinstance(key, str):
                hint = f" Write {key_node.value!r} in quotation marks." if key_node.id == "scalar" else ""
                raise _LineError(f"Expected keys to be text but got {key!r}.{hint}", key_node)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise _LineError(f"Expected each key once but got {key!r}, as in line {seen[key]}.", key_node)
            below = (*keys, key)
            seen[key] = self._lines[below] = line
            yield key, value

    def _scalar(self, node: Any) -> Any:
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and not _DECIMAL.fullmatch(node.value):
            raise _LineError(
                f"Expected a decimal number but got {node.value}, which YAML reads as another one. Write it "
                "without leading zeros, ':' and '_', or as text in quotation marks.",
                node,
            )
        if kind == "str" and node.style is None and _EXPONENT.fullmatch(node.value):
            return float(node.value)
        try:
            return self._scalars.construct_object(node, deep=True)
        except ValueError as error:  # the 30th of February
            raise _LineError(f"Expected a valid {kind} but got {node.value!r}: {error}.", node) from error


def check_keys(values: Mapping[str, Any], known: Collection[str], where: str, *keys: str | int) -> None:
    """Raise ``EntryError`` unless a mapping has known keys only.

    Args:
        values: The mapping.
        known: The keys that it may have.
        where: What it is, for the message.
        keys: Keys and indices that lead to it.
    """
    for key in values:
        if key not in known:
            raise EntryError(
                f"Expected only known keys in {where} but got {key!r}. {did_you_mean(key, known)}", *keys, key
            )


def as_mapping(values: object, where: str, *keys: str | int) -> Mapping[str, Any]:
    """Return a mapping as it is.

    Raises:
        EntryError: If it is none.
    """
    if not isinstance(values, Mapping):
        raise EntryError(f"Expected {where} to be a mapping of keys to values but got {values!r}.", *keys)
    return values


def as_list(values: object, where: str, *keys: str | int) -> list[Any]:
    """Return a list as it is, and an empty one for None.

    Raises:
        EntryError: If it is neither.
    """
    if values is None:
        return []
    if not isinstance(values, list | tuple):
        raise EntryError(f"Expected {where} to be a list but got {values!r}.", *keys)
    return list(values)
