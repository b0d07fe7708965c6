"""``BlockMask``, the mask of flex attention: a rule per pair of positions, evaluated tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lightning_geo.utils._torch import table_lookups
from lightning_geo.utils.shapes import Bool, Int64, Integer, Shaped

__all__ = ["BlockRule", "mask_rows"]


@dataclass(frozen=True)
class BlockRule:
    """A ``BlockMask`` in the form that tiles need.

    Args:
        mask_mod: ``(b, h, query, key) -> bool`` on scalar index tensors, as flex attention calls it.
        blocks: ``[B or 1, H or 1, query blocks, key blocks]`` bool, False where flex attention skips the
            block: masks made by ``BlockMask.from_kv_blocks`` may hide keys by that alone.
        block_size: Queries and keys per block.
    """

    mask_mod: Callable[..., Shaped[Tensor, ""]]
    blocks: Bool[Tensor, "#batch #heads query_blocks key_blocks"]
    block_size: tuple[int, int]

    @classmethod
    def of(cls, mask: BlockMask) -> BlockRule:
        """Read a ``BlockMask``."""
        queries, keys = mask.BLOCK_SIZE
        return cls(mask.mask_mod, mask.to_dense().bool(), (queries, keys))

    def visible(
        self, batch: slice, heads: slice, rows: slice | Int64[Tensor, "batch rows"], columns: slice
    ) -> Bool[Tensor, "#b #h rows columns"]:
        """Bool ``[b or 1, h or 1, rows, columns]`` of a tile; ``rows`` may be chosen, ``[b, rows]``."""
        if isinstance(rows, Tensor):
            sequences = range(*batch.indices(batch.stop))
            # each sequence has its own rows, and a mask made for one sequence holds for all
            one = [slice(0, 1) if self.blocks.shape[0] == 1 else slice(b, b + 1) for b in sequences]
            return torch.cat([self._tile(b, heads, r, columns) for b, r in zip(one, rows, strict=True)])
        return self._tile(batch, heads, self._range(rows), columns)

    def of_rows(self, rows: Int64[Tensor, " rows"], keys: int) -> Bool[Tensor, "#batch #heads rows columns"]:
        """Bool ``[B or 1, H or 1, rows, Nk]`` of some rows, the same in all sequences."""
        return self._tile(slice(None), slice(None), rows, slice(0, keys))

    def _tile(
        self, batch: slice, heads: slice, rows: Int64[Tensor, " rows"], columns: slice
    ) -> Bool[Tensor, "#b #h rows columns"]:
        indices = self._leading(batch, 0), self._leading(heads, 1), rows, self._range(columns)
        query_blocks, key_blocks = indices[2] // self.block_size[0], indices[3] // self.block_size[1]
        blocks = self.blocks[indices[0]][:, indices[1]][:, :, query_blocks][..., key_blocks]
        return blocks & self._evaluate(indices, (None, None, None, 0), (None, None, 0, None))

    def pairs(
        self, rows: Integer[Tensor, " n"], columns: Integer[Tensor, " n"]
    ) -> Bool[Tensor, "#batch #heads n"]:
        """Bool ``[B or 1, H or 1, n]`` of n pairs of positions."""
        indices = self._leading(slice(None), 0), self._leading(slice(None), 1), rows, columns
        blocks = self.blocks[..., rows // self.block_size[0], columns // self.block_size[1]]
        return blocks & self._evaluate(indices, (None, None, 0, 0))

    def _leading(self, part: slice, axis: int) -> Int64[Tensor, " indices"]:
        # a mask made for one sequence or one head holds for all of them
        size = self.blocks.shape[axis]
        return self._range(slice(0, 1) if size == 1 else slice(*part.indices(size)))

    def _range(self, part: slice) -> Int64[Tensor, " indices"]:
        return torch.arange(part.start, part.stop, device=self.blocks.device)

    def _evaluate(
        self, indices: tuple[Integer[Tensor, " _"], ...], *inner: tuple[int | None, ...]
    ) -> Bool[Tensor, " ..."]:
        # a mask_mod is written for scalars: whole index tensors would break those that look up tables
        function = self.mask_mod
        for dims in (*inner, (None, 0, None, None), (0, None, None, None)):
            function = torch.vmap(function, in_dims=dims)
        with table_lookups():
            return function(*indices).bool()


def mask_rows(
    mask: BlockMask, rows: Integer[Tensor, " n"], columns: Integer[Tensor, " n"]
) -> Bool[Tensor, "#batch n"]:
    """Evaluate a ``BlockMask`` on pairs of positions: may query ``rows[n]`` attend to key ``columns[n]``?

    Args:
        mask: Of shape [B or 1, H or 1, Nq, Nk].
        rows: Integer ``[n]``, query positions.
        columns: Integer ``[n]``, key positions.

    Returns:
        Bool ``[B or 1, n]``: in any head.
    """
    return BlockRule.of(mask).pairs(rows, columns).any(dim=1)
