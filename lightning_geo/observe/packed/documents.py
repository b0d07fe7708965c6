"""The documents in the rows of an attention call.

Evidence counts in this order: cumulative lengths or position ids from which the attention function itself
makes its documents (FlashAttention, ``varlen_attn``); then arguments of the running modules, the innermost
first: cumulative lengths, document numbers, and position ids that restart. A module's argument is only a
claim: it counts if the call's masks hide the keys of other documents from every query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.packed.claims import Evidence, claimed_documents
from lightning_geo.observe.packed.isolation import joined_rows, varies_by_query
from lightning_geo.observe.packing import Packing
from lightning_geo.observe.spans import Array, Spans, from_cumulative, is_packed
from lightning_geo.utils._torch import identity_of, version_of
from lightning_geo.utils.errors import GeometryError

__all__ = ["Documents", "PackedCallError"]


class PackedCallError(GeometryError, ValueError):
    """A call's rows hold several documents, and the call cannot be divided into them."""


class Documents:
    """Finds the documents of attention calls.

    Results are kept until :meth:`start_over`, so that all layers share them and the host waits for the device
    once per root call.
    """

    def __init__(self) -> None:
        self._host: dict[tuple[int, int], tuple[Tensor, Array]] = {}
        self._packings: dict[tuple[Any, ...], tuple[Any, Packing | None]] = {}

    def start_over(self) -> None:
        """Drop every reference to a root call's tensors when one begins or ends."""
        self._host.clear()
        self._packings.clear()

    def of(self, call: AttentionCall, given: Sequence[tuple[Evidence, ...]]) -> Packing | None:
        """Find the documents of one call.

        Args:
            call: The call, with its ``query_mask`` if there is one.
            given: Arguments of the running modules, outermost first: see :func:`evidence_in`.

        Returns:
            ``None`` if there is no evidence that a row holds more than one sequence.

        Raises:
            PackedCallError: If the call cannot be divided into the documents in its rows.
        """
        if call.cumulative is not None or call.restarts is not None:
            return self._by_construction(call)
        evidence = [e for frame in reversed(given) for e in frame]
        hiding = [mask for mask in call.masks if varies_by_query(mask)]
        if not evidence or not hiding:
            return None
        if call.cross:
            self._check_cross(call, evidence)
            return None
        if call.lengths[1] != call.lengths[2]:
            return None
        tensors = *hiding, *(e.tensor for e in evidence)
        key = (call.lengths, call.is_causal, *map(_identity, tensors))
        if key in self._packings:
            return self._packings[key][1]
        packing = self._by_claim(call, evidence)
        # Masks read from scores are freed after the layer; another layer's may take their place in memory.
        if call.scores is None:
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
                    "its documents have unequal numbers of queries and keys, so that causality or a window, "
                    "which count from each document's end, cannot be measured"
                )
        return packing

    def _construct(self, call: AttentionCall) -> Packing | None:
        batch, rows, columns = call.lengths
        if call.restarts is not None:
            positions = self._read([call.restarts])[0]
            if positions.size != rows or (np.diff(positions[0]) == 1).all():
                return None
            # Same rule as in transformers: a document begins at each occurrence of the lowest position.
            starts = np.flatnonzero(positions[0] == positions.min()).tolist()
            spans = list(zip(starts, [*starts[1:], rows], strict=True))
            return Packing(spans, spans, rows, call.device)
        assert call.cumulative is not None
        bounds = self._read(call.cumulative)
        total = batch * rows
        query_spans = from_cumulative(bounds[0], total, exact=False)
        key_spans = from_cumulative(bounds[1], batch * columns, exact=False)
        if query_spans is None or key_spans is None or len(query_spans) != len(key_spans):
            raise PackedCallError("its cumulative lengths do not match its queries and keys")
        pairs = [(q, k) for q, k in zip(query_spans, key_spans, strict=True) if q[1] > q[0] and k[1] > k[0]]
        if not pairs:
            raise PackedCallError("its cumulative lengths describe no document with queries and keys")
        spans = [q for q, _ in pairs]
        same = rows == columns and all(q == k for q, k in pairs)
        covered = sum(stop - start for start, stop in spans) == total
        if same and covered and not is_packed(spans, rows):
            return None
        return Packing(spans, spans if same else [k for _, k in pairs], total, call.device)

    def _by_claim(self, call: AttentionCall, evidence: Sequence[Evidence]) -> Packing | None:
        for spans in self._claims(evidence, *call.lengths[:2]):
            together = joined_rows(call, spans)
            if not all(together):
                kept = _whole_rows(spans, together, call.lengths[1])
                if is_packed(kept, call.lengths[1]):
                    return Packing(kept, kept, call.lengths[0] * call.lengths[1], call.device)
        return None

    def _claims(self, evidence: Sequence[Evidence], batch: int, length: int) -> Iterator[Spans]:
        arrays = self._read([e.tensor for e in evidence])
        return claimed_documents([(e.kind, x) for e, x in zip(evidence, arrays, strict=True)], batch, length)

    def _check_cross(self, call: AttentionCall, evidence: Sequence[Evidence]) -> None:
        """Refuse cross-attention from packed rows: the keys that belong to each document are unknown.

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
                "its queries are documents in packed rows, but the keys of each document are unknown. Pass "
                "`cu_seq_lens_k`"
            )

    def _read(self, tensors: Iterable[Tensor]) -> list[Array]:
        """Copy tensors to the host; new ones of a device are copied together, to wait for it once."""
        tensors = list(tensors)
        by_device: dict[torch.device, dict[tuple[int, int], Tensor]] = {}
        for x in tensors:
            if _place(x) not in self._host:
                by_device.setdefault(x.device, {})[_place(x)] = x
        for new in by_device.values():
            flat = torch.cat([x.reshape(-1).to(torch.int64) for x in new.values()]).cpu().numpy()
            ends = np.cumsum([x.numel() for x in new.values()])[:-1]
            for (place, x), part in zip(new.items(), np.split(flat, ends), strict=True):
                self._host[place] = x, part.reshape(x.shape)
        return [self._host[_place(x)][1] for x in tensors]


def _whole_rows(spans: Spans, together: Sequence[bool], length: int) -> Spans:
    """Merge the documents of rows in which they attend to each other into one sequence."""
    apart = [span for span in spans if not together[span[0] // length]]
    whole = [(row * length, (row + 1) * length) for row, seen in enumerate(together) if seen]
    return sorted(apart + whole)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else version_of(x)


def _place(x: Tensor) -> tuple[int, int]:
    return id(x), _version(x)


def _identity(x: Any) -> tuple[Any, ...]:
    """Return a key equal for tensors over the same memory, such as slices that layers take of one mask."""
    return identity_of(x) if isinstance(x, Tensor) else (id(x),)
