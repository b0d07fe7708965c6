"""Which documents the rows of an attention call are made of, and whether they really are apart.

Evidence comes in this order: cumulative lengths or position ids that the attention function itself was given
and makes its documents from (FlashAttention, ``varlen_attn``); then, of the running modules' arguments, the
innermost first, cumulative lengths, document numbers, and position ids that start again. What a module was
given is only a claim: it counts where the call's masks keep every query from the keys of other documents.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from lightning_geo.taps.call import AttentionCall
from lightning_geo.taps.packing import Packing
from lightning_geo.taps.spans import Array, Spans, from_cumulative, from_numbers, from_positions, is_packed

__all__ = [
    "Documents",
    "Evidence",
    "PackedCallError",
    "claimed_documents",
    "evidence_in",
    "flash_documents",
    "kind_of",
]

#: Names of arguments by kind of evidence; only integers and bools are looked at.
_NAMES = {
    "cumulative": r"cu_?(seq_?)?(lens?|lengths|q|k)?(_q|_k|_kv)?",
    "mask": r"(attention_?|attn_?|padding_?|pad_?|key_padding_?)?mask",
    "numbers": r"(doc(ument)?s?|seq(uence)?|segments?|samples?)(_?(ids?|idx|index|indices|mask|numbers?))?",
    "positions": r"(position|pos)s?(_?(ids?|idx))?|input_pos",
}

#: Score pairs that are looked at in one step.
_PAIRS = 1 << 24

Kind = str


class PackedCallError(ValueError):
    """The call's rows hold several documents, and its attention cannot be divided among them."""


class Evidence(NamedTuple):
    """One argument of a running module that may tell documents apart."""

    kind: Kind
    tensor: Tensor


@functools.lru_cache(maxsize=1024)
def kind_of(name: str) -> Kind | None:
    """Which kind of evidence an argument of that name is; ``None`` for none.

    Example:
        >>> kind_of("cu_seq_lens_q"), kind_of("position_ids"), kind_of("input_ids")
        ('cumulative', 'positions', None)
    """
    found = (kind for kind, pattern in _NAMES.items() if re.fullmatch(pattern, name, re.IGNORECASE))
    return next(found, None)


def evidence_in(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Evidence, ...]:
    """Arguments of a module that may tell documents apart, those in a batch given as a dict included."""
    named: list[tuple[str, Any]] = list(kwargs.items())
    if any(_may_tell(value) for value in args):
        named += zip(_parameters(type(module).forward), args, strict=False)
    for value in (*args, *kwargs.values()):
        if isinstance(value, Mapping):
            named += [(str(name), item) for name, item in value.items()]
    kinds = ((kind_of(name), value) for name, value in named if _may_tell(value))
    return tuple(Evidence(kind, value) for kind, value in kinds if kind is not None)


def _may_tell(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and 0 < value.dim() < 4


@functools.lru_cache(maxsize=1024)
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(forward).parameters)[1:]
    except (TypeError, ValueError):
        return ()


def flash_documents(
    options: Mapping[str, Any], batch: int, mask: Any
) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
    """What transformers' flash attention makes its documents from, by its own rules.

    Args:
        options: Keyword arguments of the attention function.
        batch: Rows.
        mask: Its attention mask: where there is one, rows are unpadded and all else is ignored.

    Returns:
        Cumulative lengths of queries and keys, or position ids; at most one of them is not ``None``.
    """
    lengths = [options.get(name) for name in ("cu_seq_lens_q", "cu_seq_lens_k")]
    longest = [options.get(name) for name in ("max_length_q", "max_length_k")]
    positions = options.get("position_ids")
    if mask is not None:
        return None, None
    if all(isinstance(x, Tensor) for x in lengths) and all(x is not None for x in longest):
        return (lengths[0], lengths[1]), None  # type: ignore[return-value]
    if isinstance(positions, Tensor) and batch == 1 and positions.dim() == 2 and positions.shape[-1] > 1:
        return None, positions
    return None, None


def claimed_documents(evidence: Iterable[tuple[Kind, Array]], batch: int, length: int) -> Iterator[Spans]:
    """What arguments say of the documents in ``[batch, length]`` rows, the strongest kind first.

    Args:
        evidence: Kinds and values; those that are not about rows like these are passed over.
        batch: Rows.
        length: Tokens of each.

    Yields:
        Spans, none of them empty or longer than its row, where some row holds several documents.
    """
    of_kind: dict[Kind, list[tuple[Array, int]]] = {}
    for kind, array in evidence:
        if kind == "cumulative":
            of_kind.setdefault(kind, []).append((array, 1))
        elif _covers(kind, array.shape, batch, length):
            planes = array.shape[0] if array.ndim == 3 else 1
            plane = np.broadcast_to(array[0] if array.ndim == 3 else array, (batch, length))
            of_kind.setdefault(kind, []).append((plane, planes))
    masks = [array for array, _ in of_kind.get("mask", ())]
    real = next((mask != 0 for mask in masks), None)
    found: list[Spans | None] = []
    found += [from_cumulative(array, batch * length) for array, _ in of_kind.get("cumulative", ())]
    found += [from_numbers(mask, is_mask=True) for mask in masks]
    found += [from_numbers(array, is_mask=False) for array, _ in of_kind.get("numbers", ())]
    found += [from_positions(array, real, planes=n) for array, n in of_kind.get("positions", ())]
    for spans in found:
        filled = [] if spans is None else [span for span in spans if span[1] > span[0]]
        inside = all(start // length == (stop - 1) // length for start, stop in filled)
        if inside and is_packed(filled, length):
            yield filled


def _covers(kind: Kind, shape: tuple[int, ...], batch: int, length: int) -> bool:
    """Whether an argument says something of every token of rows like these."""
    if kind == "positions":
        return shape[-2:] in ((batch, length), (1, length)) or shape == (length,)
    return shape == (batch, length) or (batch == 1 and shape == (length,))


class Documents:
    """Finds the documents of attention calls; the host waits for the device once per root call.

    Everything that it looked at is kept until :meth:`start_over`, so that all layers share one look.
    """

    def __init__(self) -> None:
        self._host: dict[tuple[int, int], tuple[Tensor, Array]] = {}
        self._packings: dict[tuple[Any, ...], tuple[Any, Packing | None]] = {}

    def start_over(self) -> None:
        """A root call begins or ends: drop every reference to its tensors."""
        self._host.clear()
        self._packings.clear()

    def of(self, call: AttentionCall, given: Sequence[tuple[Evidence, ...]]) -> Packing | None:
        """Find the documents of one call.

        Args:
            call: With its ``query_mask``, where there is one.
            given: What the running modules were given, outermost first: see :func:`evidence_in`.

        Returns:
            ``None`` where every row is one sequence, as far as anybody can tell.

        Raises:
            PackedCallError: If its rows hold documents that the call cannot be divided into.
        """
        if call.cumulative is not None or call.restarts is not None:
            return self._by_construction(call)
        evidence = [e for frame in reversed(given) for e in frame]
        hiding = [mask for mask in (*call.masks, call.scores) if _tells_pairs(mask)]
        if not evidence or not hiding:
            return None
        if call.cross:
            self._check_cross(call, evidence, hiding)
            return None
        if call.lengths[1] != call.lengths[2]:
            return None
        tensors = *hiding, *(e.tensor for e in evidence)
        key = (call.lengths, call.is_causal, *map(_identity, tensors))
        if key in self._packings:
            return self._packings[key][1]
        packing = self._by_claim(call, evidence)
        if call.scores is None:  # scores are another layer's next time, and large
            self._packings[key] = (hiding, evidence), packing
        return packing

    # -- evidence

    def _by_construction(self, call: AttentionCall) -> Packing | None:
        batch, queries, keys = call.lengths
        tensors = [call.restarts] if call.cumulative is None else list(call.cumulative)
        key = (batch, queries, keys, *(_identity(x) for x in tensors))
        if key not in self._packings:
            self._packings[key] = tensors, self._construct(call)
        packing = self._packings[key][1]
        if packing is not None and packing.queries is not packing.keys:
            apart = zip(packing.queries, packing.keys, strict=True)
            shifted = any(q[1] - q[0] != k[1] - k[0] for q, k in apart)
            if shifted and (call.is_causal or call.window is not None):
                raise PackedCallError(
                    "its documents have other numbers of queries than of keys, and causality or a window "
                    "counts from each document's end"
                )
        return packing

    def _construct(self, call: AttentionCall) -> Packing | None:
        batch, rows, columns = call.lengths
        if call.restarts is not None:
            positions = self._read([call.restarts])[0]
            if positions.size != rows or (np.diff(positions[0]) == 1).all():
                return None
            # transformers' own rule: a document begins wherever the lowest position stands
            starts = np.flatnonzero(positions[0] == positions.min()).tolist()
            spans = list(zip(starts, [*starts[1:], rows], strict=True))
            return Packing(spans, spans, rows, call.device)
        assert call.cumulative is not None
        bounds = self._read(call.cumulative)
        total = batch * rows
        of_queries = from_cumulative(bounds[0], total, exact=False)
        of_keys = from_cumulative(bounds[1], batch * columns, exact=False)
        if of_queries is None or of_keys is None or len(of_queries) != len(of_keys):
            raise PackedCallError("its cumulative lengths do not fit its queries and keys")
        pairs = [(q, k) for q, k in zip(of_queries, of_keys, strict=True) if q[1] > q[0] and k[1] > k[0]]
        if not pairs:
            raise PackedCallError("its cumulative lengths leave no document")
        spans = [q for q, _ in pairs]
        same = rows == columns and all(q == k for q, k in pairs)
        covered = sum(stop - start for start, stop in spans) == total
        if same and covered and not is_packed(spans, rows):
            return None
        return Packing(spans, spans if same else [k for _, k in pairs], total, call.device)

    def _by_claim(self, call: AttentionCall, evidence: Sequence[Evidence]) -> Packing | None:
        for spans in self._claims(evidence, *call.lengths[:2]):
            together = _rows_together(call, spans)
            if not all(together):
                kept = _whole_rows(spans, together, call.lengths[1])
                if is_packed(kept, call.lengths[1]):
                    return Packing(kept, kept, call.lengths[0] * call.lengths[1], call.device)
        return None

    def _claims(self, evidence: Sequence[Evidence], batch: int, length: int) -> Iterator[Spans]:
        arrays = self._read([e.tensor for e in evidence])
        return claimed_documents([(e.kind, x) for e, x in zip(evidence, arrays, strict=True)], batch, length)

    def _check_cross(self, call: AttentionCall, evidence: Sequence[Evidence], hiding: Sequence[Any]) -> None:
        """Queries of packed rows that see each other keys: nothing says which keys are a document's.

        Raises:
            PackedCallError: If the rows of queries are packed.
        """
        key = ("cross", call.lengths, *(_identity(e.tensor) for e in evidence))
        if key not in self._packings:
            claimed = next(self._claims(evidence, *call.lengths[:2]), None)
            packed = None if claimed is None else Packing(claimed, claimed, 0, call.device)
            self._packings[key] = evidence, packed
        if self._packings[key][1] is not None:
            raise PackedCallError(
                "its queries are documents in packed rows, and nothing says which keys are theirs: "
                "give `cu_seq_lens_k`"
            )

    def _read(self, tensors: Iterable[Tensor]) -> list[Array]:
        """Bring tensors to the host: those that were not yet looked at in one go."""
        tensors = list(tensors)
        new = {_place(x): x for x in tensors if _place(x) not in self._host}
        if new:
            flat = torch.cat([x.reshape(-1).to(torch.int64) for x in new.values()]).cpu().numpy()
            ends = np.cumsum([x.numel() for x in new.values()])[:-1]
            for (place, x), part in zip(new.items(), np.split(flat, ends), strict=True):
                self._host[place] = x, part.reshape(x.shape)
        return [self._host[_place(x)][1] for x in tensors]


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _place(x: Tensor) -> tuple[int, int]:
    return id(x), _version(x)


def _identity(x: Any) -> tuple[Any, ...]:
    """Equal for the same content: a slice that every layer takes anew of one mask is the same tensor."""
    if not isinstance(x, Tensor):
        return (id(x),)
    return x.data_ptr(), x.storage_offset(), tuple(x.shape), x.stride(), x.dtype, _version(x)


# -- whether documents are apart


def _tells_pairs(mask: Any) -> bool:
    """Whether a mask can hide a key from some queries and not from others."""
    if isinstance(mask, Tensor):
        return mask.dim() >= 2 and mask.shape[-2] > 1 and mask.shape[-1] > 1
    return isinstance(mask, BlockMask)


def _whole_rows(spans: Spans, together: Sequence[bool], length: int) -> Spans:
    """Rows whose documents see each other are one sequence."""
    apart = [span for span in spans if not together[span[0] // length]]
    whole = [(row * length, (row + 1) * length) for row, seen in enumerate(together) if seen]
    return sorted(apart + whole)


def _rows_together(call: AttentionCall, spans: Spans) -> list[bool]:
    """Of each row, whether any query of a document may attend to a key outside of it."""
    batch, length, _ = call.lengths
    labels = np.full(batch * length, -1)
    for number, (start, stop) in enumerate(spans):
        labels[start:stop] = number
    documents = torch.from_numpy(labels).to(call.device).view(batch, length)
    real = documents >= 0
    if call.query_mask is not None:
        real = real & call.query_mask
    rules = [_pair_rule(mask, length) for mask in (*call.masks, call.scores) if _tells_pairs(mask)]
    columns = torch.arange(length, device=call.device)
    together = torch.zeros(batch, dtype=torch.bool, device=call.device)
    step = max(1, _PAIRS // (batch * length))
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        seen = real[:, rows, None] & (documents[:, rows, None] != documents[:, None, :])
        if call.is_causal:
            seen = seen & (columns <= columns[rows, None])
        for rule in rules:
            seen = seen & rule(rows)
        together |= seen.flatten(1).any(1)
    found: list[bool] = together.tolist()
    return found


def _pair_rule(mask: Any, length: int) -> Callable[[slice], Tensor]:
    """``rows -> [B or 1, rows, Nk]``: the keys that these rows see in any head."""
    from lightning_geo.kernels import HIDDEN_BELOW, BlockRule

    if isinstance(mask, BlockMask):
        rule = BlockRule.of(mask)
        batch, heads = rule.blocks.shape[:2]
        every = slice(0, batch), slice(0, heads)
        return lambda rows: rule.visible(*every, rows, slice(0, length)).any(1)
    if mask.dim() > 2 and mask.stride(-3) == 0:  # one for all heads
        mask = mask.narrow(-3, 0, 1)
    four = mask[(None,) * (4 - mask.dim())]

    def visible(rows: slice) -> Tensor:
        part = four[:, :, rows]
        seen: Tensor = (part if part.dtype == torch.bool else part > HIDDEN_BELOW).any(1)
        return seen

    return visible
