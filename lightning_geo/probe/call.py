"""One recorded call of an observed model, and its sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_geo.observe.replay.call_state import holds_state
from lightning_geo.observe.replay.undisturbed_run import Call
from lightning_geo.probe.fingerprint import digest
from lightning_geo.probe.sequences import CallSequences, documents_taken, tokens_of_documents

__all__ = ["ProbeCall", "rows_of"]


@dataclass
class ProbeCall:
    """One recorded call.

    Args:
        model: Prefix of the observed model.
        call: Its arguments, on the CPU.
        rows: Number of parts if it is divisible, otherwise number of sequences.
        divisible: Whether it can be divided: all its tensors have the sequences on their first axis; or its
            only row holds documents, and every tensor has an entry for each token. A call with a cache never
            can.
        sequences: Sequences and tokens of its parts.
        scored: Number of its first sequences whose single scores are measured; None before the probe decides.
    """

    model: str
    call: Call
    rows: int
    divisible: bool
    sequences: CallSequences
    scored: int | None = None

    @classmethod
    def of(cls, model: str, call: Call, *, packed: bool = True) -> ProbeCall:
        """Count the sequences of a call; without ``packed`` only its rows, which reads no tensor."""
        sequences = CallSequences.of(call, packed=packed)
        divisible = sequences.divisible and not holds_state([*call.args, call.kwargs])
        rows = len(sequences.counts) if divisible else sequences.counts[0]
        return cls(model, call, rows, divisible, sequences)

    @property
    def kind(self) -> tuple[object, ...]:
        """Identifies calls that run through the same layers."""
        return self.model, self.call.method, len(self.call.args), *sorted(self.call.kwargs)

    def to(self, device: torch.device) -> ProbeCall:
        """Move its tensors."""
        return replace(self, call=self.call.to(device))

    def whole(self) -> ProbeCall:
        """Return the same call as one that cannot be divided."""
        if not self.divisible:
            return self
        counts, tokens = (sum(self.sequences.counts),), (sum(self.sequences.tokens),)
        sequences = CallSequences(False, counts, tokens, packed=self.sequences.packed)
        return replace(self, rows=counts[0], divisible=False, sequences=sequences)

    def take(self, rows: slice) -> ProbeCall:
        """Return some of its parts; the whole call if it is not divisible."""
        if not self.divisible:
            return self
        documents = self.sequences.documents
        if documents is None:
            # A view would keep the whole batch in memory and in checkpoints: clone the rows.
            with torch.inference_mode(False), torch.no_grad():
                return ProbeCall.of(self.model, self.call.map(lambda x: x[rows].clone() if x.dim() else x))
        indices = range(self.rows)[rows]
        call, spans = documents_taken(self.call, documents, indices)
        tokens = tuple(self.sequences.tokens[i] for i in indices)
        sequences = CallSequences(True, (1,) * len(tokens), tokens, spans, packed=len(tokens) > 1)
        return ProbeCall(self.model, call, len(tokens), True, sequences)

    def scored_in(self, rows: slice) -> int:
        """Count the scored sequences in some of the parts, where they are the first ones, too."""
        indices, start, scored = range(self.rows)[rows], 0, 0
        for index, count in enumerate(self.sequences.counts):
            scored += min(count, max(0, (self.scored or 0) - start)) if index in indices else 0
            start += count
        return scored

    def digests(self) -> list[bytes]:
        """Return a digest of each sequence, without the padding that an attention mask marks."""
        if self.sequences.documents is not None:
            parts = tokens_of_documents(self.call, self.sequences.documents)
            return [digest(part, slice(None), None) for part in parts]
        named = {**{str(i): x for i, x in enumerate(self.call.args)}, **self.call.kwargs}
        if self.call.method and isinstance(named.get("0"), Mapping):
            named |= named.pop("0")  # a step's batch: its entries count as a model's keyword arguments
        mask = named.get("attention_mask")
        if not (self.divisible and isinstance(mask, Tensor) and mask.dim() == 2):
            mask = None
        rows = range(self.rows) if self.divisible else [slice(None)]
        return [digest(named, row, mask) for row in rows]


def rows_of(call: Call) -> tuple[int, bool]:
    """Return the number of sequences, and whether all tensors have them on their first axis."""
    sizes = [x.shape[0] for x in call.tensors() if x.dim() > 0]
    return (sizes[0] if sizes else 1), len(set(sizes)) == 1
