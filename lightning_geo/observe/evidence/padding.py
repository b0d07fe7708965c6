"""Finds padding by its token id, where a model was called without a padding mask."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.axes import config_of
from lightning_geo.observe.evidence.masks import MaskReader
from lightning_geo.observe.layers.frame import Frame

__all__ = ["padding_by_ids"]


def padding_by_ids(frames: Sequence[Frame], call: AttentionCall, reader: MaskReader) -> Tensor | None:
    """Return which keys are padding by their token ids.

    The id of padding may be that of a real token, such as the end of a text: it is padding where it stands
    several times at an end of a row.

    Args:
        frames: The running modules, outermost first.
        call: A self-attention in which query i and key i are one token.
        reader: Reads each tensor once.

    Returns:
        bool [B, Nk]; None if no config names the id, or no running module has the ids of these keys.
    """
    batch, _, keys = call.lengths
    named = (getattr(config_of(frame.module), "pad_token_id", None) for frame in frames)
    pad = next((value for value in named if isinstance(value, int)), None)
    tokens = next((f.input_ids for f in reversed(frames) if f.input_ids is not None), None)
    if pad is None or tokens is None or tokens.shape != (batch, keys):
        return None
    padding: Tensor = reader.once(f"ends of {pad}", tokens, lambda ids: _at_the_ends(ids == pad))
    return padding


def _at_the_ends(flags: Tensor) -> Tensor:
    """Runs of two or more at the start or the end of a row, ``[B, N]`` bool."""
    start = flags.cumprod(-1)
    end = flags.flip(-1).cumprod(-1).flip(-1)
    return (start * (start.sum(-1, keepdim=True) > 1) + end * (end.sum(-1, keepdim=True) > 1)) > 0
