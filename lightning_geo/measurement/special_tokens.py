"""Token ids that count as special."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_geo.observe.evidence.axes import config_of

__all__ = ["special_tokens"]


def special_tokens(model: nn.Module, given: Iterable[int] | None) -> tuple[int, ...]:
    """Ids of special tokens: the given ones, or the bos, eos, cls and sep that the config names."""
    if given is not None:
        return tuple(given)
    config = config_of(model)
    ids: list[int] = []
    for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        value = getattr(config, name, None)
        ids += [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, int)]
    return tuple(dict.fromkeys(ids))
