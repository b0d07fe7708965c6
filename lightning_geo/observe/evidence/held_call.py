"""One attention call with the evidence about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.origins import Origin

__all__ = ["Held"]


@dataclass
class Held:
    """One attention call with the evidence about it.

    Args:
        call: The call.
        module: Path of the module that computed it.
        query: Origin of its queries.
        key: Origin of its keys.
        result: Result of the function that computed it.
        multi_head: The function's arguments, if it is ``F.multi_head_attention_forward``.
        behind: Whether extra keys were appended after the queries' own, not put in front.
        late: Whether the model already used the result when the call is shown.
    """

    call: AttentionCall
    module: str
    query: Origin | None
    key: Origin | None
    result: Any
    multi_head: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    behind: bool = False
    late: bool = False

    def beside(self, other: Held) -> bool:
        """Whether both calls attend with the same hidden states, rather than one with the other's output."""
        return self.query is not None and self.query == other.query
