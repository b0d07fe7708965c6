"""Everything that tells what an attention call is: gathered in one place, each source in a file of its own.

In the order of their weight: what the model was told (``tokens``, ``documents``), what its modules declare
(``axes``, ``positions``), what its tensors were computed from (``origins``, ``folds``), and sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lightning_geo.observe.evidence.axes import Axes, declared_heads, find_axes
from lightning_geo.observe.evidence.folds import Folds
from lightning_geo.observe.evidence.held_call import Held
from lightning_geo.observe.evidence.masks import MaskReader
from lightning_geo.observe.evidence.origins import Origin, Origins, tensors_in
from lightning_geo.observe.evidence.positions import set_positions
from lightning_geo.observe.evidence.tokens import keys_by_masks, set_token_masks, special_tokens_of
from lightning_geo.observe.layers.frame import Frame, tokens_in
from lightning_geo.observe.layers.module_stack import ModuleStack
from lightning_geo.observe.packed.documents import Documents

__all__ = ["CallEvidence"]


class CallEvidence:
    """What is known of the sequences that run through a model.

    Args:
        special_ids: Input ids that count as special tokens.
    """

    def __init__(self, special_ids: tuple[int, ...] = ()) -> None:
        self._special_ids = special_ids
        self._origins = Origins()
        self._folds = Folds()
        self.masks = MaskReader()
        self._documents = Documents()
        #: names of the model's arguments by source
        self._arguments: dict[int, str] = {}
        #: real tokens of sequences, as self-attention tells them: source, batch and length -> [B, N]
        self._query_masks: dict[tuple[int | None, int, int], Tensor | None] = {}

    def clear(self) -> None:
        """Forget the forward that ended."""
        self._origins.clear()
        self._folds.clear()
        self.masks.clear()
        self._documents.start_over()
        self._query_masks.clear()

    def begin(self, frame: Frame, buffers: Iterable[Tensor]) -> None:
        """The outermost module starts: its arguments are the sequences, its buffers are constants."""
        self._origins.make(buffers)
        for argument, value in frame.given.items():
            found = list(tensors_in([value, *value.values()] if isinstance(value, Mapping) else [value], {}))
            self._origins.give(found)
            for x in found:
                origin = self._origins.of(x)
                if origin is not None:
                    self._arguments[origin.source] = argument

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """A torch function returned that is no attention by itself."""
        self._origins.follow(func, args, kwargs, result)
        self._folds.follow(func, args, kwargs, result)

    def attended(self, query: Tensor, key: Tensor, result: Any) -> tuple[Origin | None, Origin | None]:
        """An attention gave ``result`` to these queries; what is known of them and of the keys."""
        known = self._origins.of(query), self._origins.of(key)
        if result is not None:
            self._origins.attended(query, result)
        return known

    def axes(self, x: Tensor, key: Tensor | None, stack: ModuleStack) -> Axes:
        """Which axis of queries ``[*lead, Nq, D]`` (or of scores) is heads, by their keys too.

        Raises:
            UnknownAxesError: If nothing tells.
        """
        declared = next((n for f in reversed(stack.inside()) if (n := declared_heads(f.module))), None)
        return find_axes(x, declared, tokens_in(stack.outwards(), x), self._folds.heads_first, key)

    def place(self, held: Held, stack: ModuleStack) -> None:
        """Tell self-attention from cross-attention, and where queries stand; lay out the masks."""
        call = held.call
        module = stack.tree.modules.get(held.module, stack.frames[-1].module)
        set_positions(call, module, stack.frames, held.query, held.key, behind=held.behind)
        shape = call.lengths[0], call.heads
        call.masks = tuple(self.masks.laid_out(mask, shape) for mask in call.masks)

    def tell_tokens(self, held: Held, stack: ModuleStack) -> None:
        """Fill in which tokens are real and which are special, and the documents of packed rows.

        Raises:
            PackedCallError: If its rows hold documents that the call cannot be divided into.
        """
        call, frames = held.call, stack.frames
        batch, queries, _ = call.lengths
        names = [None if o is None else self._arguments.get(o.source) for o in (held.query, held.key)]
        place = None if held.query is None else held.query.source, batch, queries
        told = set_token_masks(call, frames, (names[0], names[1]), self.masks, self._query_masks.get(place))
        call.documents = self._documents.of(call, [frame.evidence for frame in frames])
        if call.documents is not None and not told:
            # a token that nobody but itself sees is a document, not padding
            call.query_mask = call.key_mask = keys_by_masks(call, self.masks, alone=True)
        if not call.cross:
            self._query_masks[place] = call.query_mask
        call.special = special_tokens_of(frames, self._special_ids, call)
