"""The table of attention calls on which every backend must agree with the oracle.

A case is the arguments of ``attention_statistics``. Each says which path it is there for. Sizes are odd
and small: the tests cut them into tiles of every size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention.flex_attention import BlockMask

from kernels.calls import Arguments, block_mask, lengths, on_a_lattice, qk

CASES: dict[str, Callable[[], Arguments]] = {}


def case(build: Callable[[], Arguments]) -> Callable[[], Arguments]:
    """Enter a case under its function's name; the seed depends on nothing else."""

    def seeded() -> Arguments:
        with torch.random.fork_rng():
            torch.manual_seed(sum(map(ord, build.__name__)))
            return build()

    CASES[build.__name__] = seeded
    return build


# ---- shapes


@case
def plain() -> Arguments:  # nothing is hidden: no bias at all
    return qk()


@case
def one_query_one_key() -> Arguments:  # every axis of size 1
    return qk(batch=1, heads=1, queries=1, keys=1)


@case
def one_query_many_keys() -> Arguments:  # one row per tile: decoding
    return qk(queries=1, keys=37)


@case
def many_queries_one_key() -> Arguments:  # entropy 0, all mass on one key
    return qk(queries=37, keys=1)


@case
def more_keys() -> Arguments:  # positions beyond the diagonal's end
    return qk(queries=9, keys=21)


@case
def more_keys_bottom_right() -> Arguments:  # positions shifted right
    return {**qk(queries=9, keys=21), "causal_alignment": "bottom_right"}


@case
def more_queries() -> Arguments:  # rows whose own key does not exist
    return qk(queries=21, keys=9)


@case
def more_queries_bottom_right() -> Arguments:  # rows at negative positions
    return {**qk(queries=21, keys=9), "causal_alignment": "bottom_right"}


@case
def long_rows() -> Arguments:  # more than 128 rows, several tiles by default
    return qk(batch=1, heads=1, queries=203, keys=203)


@case
def long_left_padding() -> Arguments:  # the first key lies beyond the first step of its search
    keep = torch.arange(150) >= torch.tensor([[90], [3]])
    return {**qk(heads=1, queries=150, keys=150), "mask": keep[:, None, None], "query_mask": keep}


@case
def many_sequences() -> Arguments:  # groups of sequences, the last one smaller
    return qk(batch=7, heads=2, queries=5, keys=5)


@case
def no_queries() -> Arguments:  # empty planes
    return qk(queries=0)


@case
def no_sequences() -> Arguments:  # nothing to do
    return qk(batch=0)


# ---- heads


@case
def grouped_heads() -> Arguments:  # three query heads per key head, in order
    return qk(heads=6, key_heads=2)


@case
def one_key_head() -> Arguments:  # MQA
    return qk(heads=5, key_heads=1)


@case
def grouped_heads_causal_padded() -> Arguments:  # groups, causal columns and a mask at once
    mask = lengths(13, 13, 6)[:, None, None]
    return {**qk(heads=6, key_heads=2), "mask": mask, "is_causal": True}


@case
def grouped_heads_with_mask_per_head() -> Arguments:  # the mask is indexed by query head
    return {**qk(heads=6, key_heads=3), "mask": torch.rand(1, 6, 13, 13) > 0.4}


# ---- causality and windows


@case
def causal() -> Arguments:  # columns right of the diagonal are never computed
    return {**qk(), "is_causal": True}


@case
def causal_long() -> Arguments:  # diagonal tiles and full ones
    return {**qk(batch=1, heads=1, queries=203, keys=203), "is_causal": True}


@case
def causal_more_keys_top_left() -> Arguments:  # the last keys are seen by nobody
    return {**qk(queries=9, keys=21), "is_causal": True}


@case
def causal_more_keys_bottom_right() -> Arguments:  # as after a cache
    return {**qk(queries=9, keys=21), "is_causal": True, "causal_alignment": "bottom_right"}


@case
def causal_more_queries_top_left() -> Arguments:  # the last rows see every key
    return {**qk(queries=21, keys=9), "is_causal": True}


@case
def causal_more_queries_bottom_right() -> Arguments:  # the first rows are dead, whole tiles of them
    return {**qk(queries=21, keys=9), "is_causal": True, "causal_alignment": "bottom_right"}


@case
def sliding_window() -> Arguments:  # transformers' sliding_window
    return {**qk(queries=29, keys=29), "is_causal": True, "window": 5}


@case
def window_of_one() -> Arguments:  # each query sees itself
    return {**qk(), "is_causal": True, "window": 1}


@case
def window_without_causality() -> Arguments:  # the right side is open
    return {**qk(), "window": 4}


@case
def window_two_sided() -> Arguments:  # both edges in one tile
    return {**qk(queries=29, keys=29), "window": (3, 2)}


@case
def window_long() -> Arguments:  # tiles as wide as the window needs, not as the sequence is
    return {**qk(batch=1, heads=1, queries=203, keys=203), "window": (3, 2)}


@case
def window_right_only() -> Arguments:  # -1 is no limit
    return {**qk(), "window": (-1, 2)}


@case
def window_unlimited() -> Arguments:  # a window that hides nothing
    return {**qk(), "window": (-1, -1)}


@case
def window_bottom_right() -> Arguments:  # the window moves with the positions; some rows are dead
    return {**qk(queries=21, keys=9), "window": (2, 1), "causal_alignment": "bottom_right"}


@case
def window_past_the_keys() -> Arguments:  # the last rows' window begins beyond the last key
    return {**qk(queries=21, keys=9), "window": (2, 1)}


@case
def window_and_mask() -> Arguments:  # band and mask in one bias
    mask = torch.rand(2, 1, 29, 29) > 0.3
    return {**qk(queries=29, keys=29), "window": (6, 3), "mask": mask}


# ---- masks


@case
def mask_queries_keys() -> Arguments:  # two axes
    return {**qk(), "mask": torch.rand(13, 13) > 0.4}


@case
def mask_keys() -> Arguments:  # one axis
    return {**qk(), "mask": torch.rand(13) > 0.4}


@case
def mask_right_padding() -> Arguments:  # no row axis; one sequence ends before a tile's last column
    return {**qk(), "mask": lengths(13, 13, 5)[:, None, None]}


@case
def mask_expanded() -> Arguments:  # an axis of stride 0 is read once
    return {**qk(), "mask": lengths(13, 11, 5)[:, None, None].expand(2, 3, 13, 13)}


@case
def mask_left_padding_causal() -> Arguments:  # dead rows, first key not 0
    keep = torch.arange(13) >= torch.tensor([[0], [4]])
    return {**qk(), "mask": (keep[:, None] & torch.ones(13, 13).tril().bool())[:, None]}


@case
def mask_per_head() -> Arguments:  # [1, H, Nq, Nk]
    return {**qk(), "mask": torch.rand(1, 3, 13, 13) > 0.4}


@case
def mask_full() -> Arguments:  # [B, H, Nq, Nk]
    return {**qk(), "mask": torch.rand(2, 3, 13, 13) > 0.4}


@case
def mask_of_rows() -> Arguments:  # the key axis is of size 1: whole rows are dead
    return {**qk(), "mask": torch.rand(2, 1, 13, 1) > 0.4}


@case
def mask_hides_all() -> Arguments:  # no live row in the whole call
    return {**qk(), "mask": torch.zeros(13, 13, dtype=torch.bool)}


@case
def mask_leaves_one_key() -> Arguments:  # one visible key per row: entropy 0
    return {**qk(), "mask": torch.eye(13).bool().roll(3, 1)}


@case
def bias_per_head() -> Arguments:  # T5: a float mask that hides nothing
    return {**qk(), "mask": torch.randn(1, 3, 13, 13), "scale": 1.0}


@case
def bias_with_lowest_float() -> Arguments:  # T5 with padding: finfo.min plus position bias
    hidden = ~lengths(13, 13, 5)[:, None, None]
    mask = torch.randn(1, 3, 13, 13) + hidden * torch.finfo(torch.float32).min
    return {**qk(), "mask": mask, "scale": 1.0}


@case
def bias_of_minus_infinity() -> Arguments:  # -inf, dead rows included
    return {**qk(), "mask": torch.zeros(13, 13).masked_fill(torch.rand(13, 13) > 0.3, -torch.inf)}


@case
def bias_of_minus_ten_thousand() -> Arguments:  # the old convention, with a position bias on top
    mask = torch.randn(2, 1, 13, 13) - 1e4 * (torch.rand(2, 1, 13, 13) > 0.5)
    return {**qk(), "mask": mask}


@case
def bias_just_visible() -> Arguments:  # -8999 hides nothing, -9000 does
    mask = torch.full((13, 13), -8999.0)
    mask[:, 4] = -9000.0
    return {**on_a_lattice(qk(dim=16)), "mask": mask}


@case
def bias_in_half_precision() -> Arguments:  # finfo.min of float16
    hidden = ~lengths(13, 13, 5)[:, None, None]
    return {**qk(), "mask": hidden.half() * torch.finfo(torch.float16).min}


@case
def bias_in_bfloat16() -> Arguments:  # finfo.min of bfloat16
    hidden = ~lengths(13, 13, 5)[:, None, None]
    return {**qk(), "mask": torch.randn(13, 13).bfloat16() + hidden * torch.finfo(torch.bfloat16).min}


@case
def several_masks() -> Arguments:  # bias, padding and causality all apply
    masks = (torch.randn(13, 13), lengths(13, 13, 5)[:, None, None])
    return {**qk(), "mask": masks, "is_causal": True}


@case
def masks_that_both_hide() -> Arguments:  # a key hidden twice stays hidden, a dead row dead
    lowest = torch.finfo(torch.float32).min
    mask = torch.where(lengths(13, 13, 5)[:, None, None], 0.0, lowest)
    return {**qk(), "mask": (mask, mask, lengths(13, 0, 7)[:, None, None])}


# ---- BlockMask


@case
def block_causal() -> Arguments:  # B = H = None
    return {**qk(), "mask": block_mask(lambda b, h, q, k: q >= k, None, None, 13, 13)}


@case
def block_documents() -> Arguments:  # looks up a table, per sequence; rows' visible keys lie anywhere
    document = torch.randint(0, 3, (2, 29))
    rule = lambda b, h, q, k: (document[b, q] == document[b, k]) & (q >= k)  # noqa: E731
    return {**qk(queries=29, keys=29), "mask": block_mask(rule, 2, None, 29, 29)}


@case
def block_per_head() -> Arguments:  # depends on the head; grouped heads
    rule = lambda b, h, q, k: (q - k).abs() <= h  # noqa: E731
    return {**qk(heads=4, key_heads=2), "mask": block_mask(rule, None, 4, 13, 13)}


@case
def block_more_keys() -> Arguments:  # not square
    rule = lambda b, h, q, k: q + 12 >= k  # noqa: E731
    return {**qk(queries=9, keys=21), "mask": block_mask(rule, None, None, 9, 21)}


@case
def block_table_alone() -> Arguments:  # no rule: only the table of blocks hides
    count = torch.tensor([[[1, 2, 1]]], dtype=torch.int32)
    index = torch.tensor([[[[0, 1, 2], [2, 0, 1], [1, 0, 2]]]], dtype=torch.int32)
    mask = BlockMask.from_kv_blocks(count, index, BLOCK_SIZE=8, seq_lengths=(20, 20))
    return {**qk(queries=20, keys=20), "mask": mask}


@case
def block_and_padding() -> Arguments:  # with a bool mask and a window
    mask = (block_mask(lambda b, h, q, k: q >= k, None, None, 13, 13), lengths(13, 13, 5)[:, None, None])
    return {**qk(), "mask": mask, "window": 6}


# ---- padding and special tokens


@case
def query_mask_alone() -> Arguments:  # padded rows that still see keys; the first key is theirs to tell
    keep = torch.arange(13) >= torch.tensor([[0], [4]])
    return {**qk(), "query_mask": keep, "is_causal": True}


@case
def query_mask_with_holes() -> Arguments:  # dead rows between live ones
    return {**qk(), "query_mask": torch.rand(2, 13) > 0.4}


@case
def query_mask_of_other_length() -> Arguments:  # cross-attention: it says nothing about keys
    return {**qk(queries=9, keys=21), "query_mask": lengths(9, 9, 4)}


@case
def query_mask_all_padding() -> Arguments:  # one sequence without a token
    return {**qk(), "query_mask": lengths(13, 13, 0), "mask": lengths(13, 13, 0)[:, None, None]}


@case
def query_mask_and_padding() -> Arguments:  # BERT's: padded rows see the real keys
    keep = lengths(13, 13, 5)
    return {**qk(), "query_mask": keep, "mask": keep[:, None, None]}


@case
def special_tokens() -> Arguments:  # weights that differ between sequences
    return {**qk(), "special": torch.rand(2, 13) > 0.7, "is_causal": True}


@case
def special_tokens_grouped() -> Arguments:  # the same with several query heads per key head
    return {**qk(heads=6, key_heads=2), "special": torch.rand(2, 13) > 0.7}


# ---- scores


@case
def own_scale() -> Arguments:  # not 1/sqrt(D), and negative
    return {**qk(), "scale": -0.7}


@case
def zero_scale() -> Arguments:  # uniform attention
    return {**qk(), "scale": 0.0, "is_causal": True}


@case
def softcap() -> Arguments:  # gemma2, in the range where tanh bends
    return {**qk(size=8.0), "softcap": 3.0}


@case
def softcap_masked() -> Arguments:  # the cap comes before the mask
    mask = torch.randn(13, 13) - 1e4 * (torch.rand(13, 13) > 0.5)
    return {**qk(size=8.0), "softcap": 3.0, "scale": 0.5, "mask": mask, "is_causal": True}


@case
def sinks() -> Arguments:  # from none to nearly all of the probability
    logits = torch.tensor([-torch.inf, -2.0, 1.0, 30.0])
    return {**qk(heads=4), "sinks": logits, "is_causal": True, "query_mask": lengths(13, 13, 5)}


@case
def sinks_in_bfloat16() -> Arguments:  # as gpt-oss stores them
    return {**qk(), "sinks": torch.randn(3).bfloat16(), "window": 4}


@case
def offset_scores() -> Arguments:  # scores around 1e4: entropy must be taken relative to the peak
    arguments = on_a_lattice(qk(dim=16))
    arguments["query"][..., 0] = arguments["key"][..., 0] = 200.0
    return arguments


@case
def offset_scores_negative() -> Arguments:  # scores around -1e4 are not hidden
    arguments = on_a_lattice(qk(dim=16))
    arguments["query"][..., 0], arguments["key"][..., 0] = -200.0, 200.0
    return {**arguments, "is_causal": True}


@case
def offset_bias() -> Arguments:  # the offset comes with the mask
    return {**on_a_lattice(qk(dim=16)), "mask": torch.full((13, 13), 8192.0)}


@case
def one_hot_rows() -> Arguments:  # differences of thousands: all but one probability underflow
    return on_a_lattice(qk(dim=16, size=1000.0))


@case
def flat_rows() -> Arguments:  # equal scores: entropy is exactly ln(keys)
    return {**qk(size=0.0), "is_causal": True}


# ---- memory and types


@case
def strided_projections() -> Arguments:  # [B, N, H, D] transposed, one packed projection
    packed = torch.randn(2, 13, 3, 4, 8)
    return {"query": 2 * packed[:, :, 0].transpose(1, 2), "key": packed[:, :, 1].transpose(1, 2)}


@case
def strided_everywhere() -> Arguments:  # every second head, row and channel
    query, key = torch.randn(2, 8, 26, 16), torch.randn(2, 4, 26, 16)
    return {"query": query[:, ::2, ::2, ::2], "key": key[:, ::2, ::2, 1::2], "is_causal": True}


@case
def expanded_key() -> Arguments:  # stride 0: one key for all sequences and heads
    return {"query": torch.randn(2, 4, 13, 8), "key": torch.randn(1, 1, 13, 8).expand(2, 4, 13, 8)}


def _cast(arguments: Arguments, query: torch.dtype, key: torch.dtype) -> Arguments:
    return {**arguments, "query": arguments["query"].to(query), "key": arguments["key"].to(key)}


@case
def float16() -> Arguments:  # rounded inputs, float32 results
    return {**_cast(qk(), torch.float16, torch.float16), "is_causal": True}


@case
def bfloat16() -> Arguments:  # the same, grouped
    return _cast(qk(heads=6, key_heads=2), torch.bfloat16, torch.bfloat16)


@case
def float64() -> Arguments:  # computed in float32
    return _cast(qk(), torch.float64, torch.float64)


@case
def mixed_types() -> Arguments:  # under autocast RoPE may leave one of them in float32
    return _cast(qk(), torch.float32, torch.bfloat16)


@case
def wide_heads() -> Arguments:  # D beyond a register tile
    return qk(batch=1, heads=2, dim=160)


# ---- NaN and infinity


@case
def nan_query() -> Arguments:  # its row, and what that head's keys receive
    arguments = qk()
    arguments["query"][1, 2, 5, 0] = torch.nan
    return arguments


@case
def nan_in_padding() -> Arguments:  # padded tokens come out of earlier layers as NaN: no live row sees it
    keep = lengths(13, 13, 5)
    arguments = {**qk(), "mask": keep[:, None, None] & keep[:, None, :, None], "query_mask": keep}
    for name in ("query", "key"):
        arguments[name][1, :, 5:] = torch.nan
    return arguments


@case
def nan_in_rows_that_see_keys() -> Arguments:  # padded rows without a mask of their own
    arguments = {**qk(), "query_mask": lengths(13, 13, 5), "is_causal": True}
    for name in ("query", "key"):
        arguments[name][1, :, 5:] = torch.nan
    return arguments


@case
def nan_key() -> Arguments:  # rows before it do not see it
    arguments = {**qk(), "is_causal": True}
    arguments["key"][0, 1, 6] = torch.nan
    return arguments


@case
def infinite_query() -> Arguments:  # overflow in half precision
    arguments = qk()
    arguments["query"][0, 2, 2, 1] = torch.inf
    return arguments


@case
def infinite_key() -> Arguments:  # scores of both signs; hidden from some rows
    arguments = {**qk(), "mask": torch.rand(13, 13) > 0.4}
    arguments["key"][1, 0, 7, 3] = -torch.inf
    return arguments


@case
def huge_scores() -> Arguments:  # finite, but adding a large negative number does not hide them
    return {**on_a_lattice(qk()), "scale": 2.0**80, "is_causal": True, "query_mask": lengths(13, 13, 5)}
