"""Gathers all evidence about an attention call; each source has a file of its own.

In order of weight: the model's arguments (``tokens``, ``documents``), declarations of its modules (``axes``,
``positions``), the operations that computed its tensors (``origins``, ``folds``), and sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_geo.observe.evidence.axes import Axes, declared_heads, find_axes
from lightning_geo.observe.evidence.folds import Folds
from lightning_geo.observe.evidence.held_call import Held
from lightning_geo.observe.evidence.mask_structure import MaskStructures
from lightning_geo.observe.evidence.masks import MaskReader
from lightning_geo.observe.evidence.origins import Origin, Origins, tensors_in
from lightning_geo.observe.evidence.padding import padding_by_ids
from lightning_geo.observe.evidence.positions import set_positions
from lightning_geo.observe.evidence.tokens import (
    input_ids_of,
    keys_by_masks,
    set_token_masks,
    special_tokens_of,
    tokens_from_arguments,
)
from lightning_geo.observe.layers.frame import Frame, tokens_in
from lightning_geo.observe.layers.module_stack import ModuleStack
from lightning_geo.observe.packed.documents import Documents

__all__ = ["CallEvidence"]


class CallEvidence:
    """Tracks the sequences that run through a model.

    Args:
        special_ids: Input ids that count as special tokens.
    """

    def __init__(self, special_ids: tuple[int, ...] = ()) -> None:
        #: input ids that count as special tokens
        self.special_ids = special_ids
        #: the sequences that tensors come from
        self.origins = Origins()
        self._folds = Folds()
        self.masks = MaskReader()
        self.structures = MaskStructures()
        self._documents = Documents()
        #: source -> name of the model's argument
        self._arguments: dict[int, str] = {}
        #: real tokens of sequences, known from self-attention: source, batch and length -> [B, N]
        self._query_masks: dict[tuple[int | None, int, int], Tensor | None] = {}

    def clear(self) -> None:
        """Forget the forward pass that ended."""
        self.origins.clear()
        self._folds.clear()
        self.masks.clear()
        self.structures.clear()
        self._documents.start_over()
        self._query_masks.clear()
        self._arguments.clear()

    def begin(self, frame: Frame, buffers: Iterable[Tensor]) -> None:
        """Register the outermost module's arguments as sequences, and its buffers as constants."""
        self.origins.make(buffers)
        for argument, value in frame.given.items():
            tensors = list(
                tensors_in([value, *value.values()] if isinstance(value, Mapping) else [value], {})
            )
            self.origins.give(tensors)
            for x in tensors:
                origin = self.origins.of(x)
                if origin is not None:
                    self._arguments[origin.source] = argument

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Follow a torch function that is not attention by itself."""
        self.origins.follow(func, args, kwargs, result)
        self._folds.follow(func, args, kwargs, result)

    def attended(self, query: Tensor, key: Tensor, result: Any) -> tuple[Origin | None, Origin | None]:
        """Note that an attention computed ``result``, and return the origins of its queries and keys."""
        known = self.origins.of(query), self.origins.of(key)
        if result is not None:
            self.origins.attended(query, result)
        return known

    def axes(self, x: Tensor, key: Tensor | None, stack: ModuleStack) -> Axes:
        """Find the axis of heads in queries ``[*lead, Nq, D]`` (or scores), with the help of their keys.

        Raises:
            UnknownAxesError: If no evidence decides.
        """
        declared = next((n for f in reversed(stack.inside()) if (n := declared_heads(f.module))), None)
        return find_axes(x, declared, tokens_in(stack.outwards(), x), self._folds.heads_first, key)

    def place(self, held: Held, stack: ModuleStack) -> None:
        """Set whether the call is cross-attention, its queries' positions and the layout of its masks."""
        call = held.call
        set_positions(call, _module(held, stack), stack.frames, held.query, held.key, behind=held.behind)
        shape = call.lengths[0], call.heads
        call.masks = tuple(self.masks.laid_out(mask, shape) for mask in call.masks)

    def set_tokens(self, held: Held, stack: ModuleStack) -> None:
        """Fill in real tokens, special tokens and the documents of packed rows, and simplify masks.

        Raises:
            PackedCallError: If the call cannot be divided into the documents in its rows.
        """
        call, frames = held.call, stack.frames
        batch, queries, _ = call.lengths
        names = [None if o is None else self._arguments.get(o.source) for o in (held.query, held.key)]
        place = None if held.query is None else held.query.source, batch, queries
        module, known = _module(held, stack), self._query_masks.get(place)
        proves = partial(self.structures.proves, call, module)
        passed = set_token_masks(call, frames, (names[0], names[1]), self.masks, known, proves)
        if passed and self.structures.knows_at_once(call):  # then no document is hidden from another
            self.structures.simplify(call, held.module, module)
        # masks taken for a row of keys and a band part no documents: the host need not wait for arguments
        if call.cross or not self.structures.assumes(call, held.module, module):
            call.documents = self._documents.of(call, [frame.evidence for frame in frames])
        if call.documents is not None and not passed:
            # In packed rows, a token that only its own query sees is a one-token document, not padding.
            call.query_mask = call.key_mask = keys_by_masks(call, self.masks, alone=True)
        if not call.cross:
            self._query_masks[place] = call.query_mask
        ids = input_ids_of(frames, call)
        call.special = special_tokens_of(ids, self.special_ids, call, self.masks)
        if ids is not None and call.offset == 0 and ids.numel() == batch * call.lengths[2]:
            call.ids = ids.reshape(batch, -1)
        if call.documents is None:
            self.structures.simplify(call, held.module, module)

    def set_padding(self, held: Held, stack: ModuleStack) -> None:
        """Set whether the keys' mask is what the model was told, and padding by ids where nobody told it."""
        call, root = held.call, stack.frames[0]
        batch, queries, keys = call.lengths
        if call.cross or call.offset != 0 or queries != keys or held.key is None:
            return
        name = self._arguments.get(held.key.source)
        given = root.given
        if isinstance(batch_of := given.get(name or ""), Mapping):
            given, name = {**given, **batch_of}, "input_ids"
        outermost = [Frame(root.name, root.module, given=given)]
        if tokens_from_arguments(outermost, name, batch, keys, reader=self.masks) is not None:
            call.has_padding_mask = call.key_mask is not None
        else:
            call.padding = padding_by_ids(stack.frames, call, self.masks)


def _module(held: Held, stack: ModuleStack) -> nn.Module:
    """The module that computed a call."""
    module: nn.Module = stack.tree.modules.get(held.module, stack.frames[-1].module)
    return module
