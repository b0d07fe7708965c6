"""The words of a probe's tokens, for the record's attention patterns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lightning_geo.storage.patterns import AttentionPatterns
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["with_words"]


def with_words(
    patterns: Mapping[str, AttentionPatterns], owners: Iterable[Any], in_checkpoint: bool, warn_once: WarnOnce
) -> dict[str, AttentionPatterns]:
    """Return patterns whose tokens are words, where the run has a tokenizer.

    That is ``processing_class``, or else ``tokenizer``, of one of its parts.

    Args:
        patterns: By stack; their tokens are ids.
        owners: See :attr:`.Host.tokenizer_owners`.
        in_checkpoint: ``probe_in_checkpoint``. A user who keeps inputs out of checkpoints is warned that the
            record has tokens.
        warn_once: Takes the warning.
    """
    if any(own.tokens for own in patterns.values()) and not in_checkpoint:
        warn_once.warn(
            "tokens of the probe enter the record",
            "`probe_in_checkpoint=False` keeps inputs out of checkpoints, but attention patterns are "
            "recorded with the tokens of one sequence of the probe; `patterns=False` leaves both out",
        )
    tokenizers = [_tokenizer_of(owner) for owner in owners]
    known = next((one for one in tokenizers if callable(getattr(one, "convert_ids_to_tokens", None))), None)
    if known is None:
        return dict(patterns)
    return {stack: replace(own, tokens=_words(own.tokens, known)) for stack, own in patterns.items()}


def _tokenizer_of(owner: Any) -> Any:
    # the Trainer of transformers 4 writes a warning into the progress bar at each look at its `tokenizer`
    name = "processing_class" if hasattr(owner, "processing_class") else "tokenizer"
    held = getattr(owner, name, None)
    return getattr(held, "tokenizer", held)  # a processor has one


def _words(tokens: tuple[str, ...], tokenizer: Any) -> tuple[str, ...]:
    try:
        words = tokenizer.convert_ids_to_tokens([int(token[1:]) for token in tokens])
    except Exception:  # the tokenizer has other ids than the model: keep the ids without words
        return tokens
    return tuple(w if isinstance(w, str) else token for w, token in zip(words, tokens, strict=True))
