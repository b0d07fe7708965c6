"""The route ``head``: where one head looks, at the samples that keep attention patterns, and its twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lightning_geo.dashboard.samples import framed, in_force
from lightning_geo.storage.events import matrix_tag, pattern_tag, session_tag
from lightning_geo.storage.patterns import AttentionPatterns
from lightning_geo.utils.errors import ArgumentError, DamagedError

__all__ = ["read_head"]

_PARTS = ("attention", "lengths", "tokens")


def read_head(
    read: Callable[[list[str]], dict[str, Any]], monitor: str, stack: str, cell: tuple[int, int]
) -> bytes:
    """Return what the record has of one head beside its metrics.

    Args:
        read: Returns the samples of a run's tags.
        monitor: The monitor's name.
        stack: A stack of layers.
        cell: Layer and head.

    Returns:
        Length of the header (uint32), header as JSON, and one byte a cell, see :func:`.as_bytes`. The header
        has ``samples`` (``step``, ``side``: the pattern's cells along an axis, ``length``: tokens of the
        sequence, ``tokens``: which of the lists, -1 for none), ``tokens`` (lists of words), ``twins``
        (``step``, ``head``, ``similarity``: the head of the layer that is most like it), and ``kept``:
        whether any layer of the stack has patterns.

    Raises:
        ValueError: If a number is negative, or what is stored are no patterns.
    """
    layer, head = cell
    if layer < 0 or head < 0:
        raise ArgumentError(f"Expected `layer` and `head` to be at least 0 but got {layer} and {head}.")
    session, matrix = session_tag(monitor), matrix_tag(monitor, stack, "head_similarity")
    tags = {part: pattern_tag(monitor, stack, part) for part in _PARTS}
    data = read([*tags.values(), matrix, session])
    parts = {part: in_force(data.get(tag, []), data.get(session, [])) for part, tag in tags.items()}
    by_step: dict[int, dict[str, Any]] = {}
    for part, samples in parts.items():
        for sample in samples:
            by_step.setdefault(int(sample.step), {})[part] = sample.numpy
    samples, lists, codes = [], [], []
    for step, arrays in sorted(by_step.items()):
        patterns = _patterns(step, arrays)
        if layer >= patterns.codes.shape[0] or head >= patterns.codes.shape[1]:
            continue
        length = int(patterns.lengths[layer])
        side = min(length, patterns.codes.shape[2])
        if side < 1:
            continue
        words = list(patterns.tokens) if len(patterns.tokens) == length else []
        if words and words not in lists:
            lists.append(words)
        which = lists.index(words) if words else -1
        samples.append({"step": step, "side": side, "length": length, "tokens": which})
        codes.append(patterns.codes[layer, head, :side, :side].tobytes())
    twins = _twins(in_force(data.get(matrix, []), data.get(session, [])), layer, head)
    header = {"samples": samples, "tokens": lists, "twins": twins, "kept": bool(by_step)}
    return framed(header, b"".join(codes))


def _patterns(step: int, arrays: dict[str, Any]) -> AttentionPatterns:
    try:
        tokens = [word.decode() for word in arrays["tokens"].ravel()] if "tokens" in arrays else []
        lengths = arrays["lengths"].astype(np.int64)
        return AttentionPatterns(arrays["attention"], lengths, tuple(tokens))
    except (AttributeError, KeyError, ValueError) as error:
        raise DamagedError(f"The attention patterns of step {step} cannot be read: {error}.") from error


def _twins(samples: list[Any], layer: int, head: int) -> list[dict[str, Any]]:
    twins = []
    for sample in samples:
        similarity = sample.numpy
        if similarity.ndim != 3 or layer >= similarity.shape[0] or head >= similarity.shape[1]:
            continue
        row = np.array(similarity[layer, head], np.float64)
        row[head] = np.nan
        row[np.isinf(row)] = np.nan
        if not np.isnan(row).all():
            twin = int(np.nanargmax(row))
            twins.append({"step": int(sample.step), "head": twin, "similarity": float(row[twin])})
    return twins
