"""One attention call and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.origins import Origin

__all__ = ["Held"]


@dataclass
class Held:
    """One attention call and what is known of it.

    Args:
        call: The call.
        module: Path of the module that computed it.
        query: Origin of its queries.
        key: Origin of its keys.
        result: What the function returned that computed it.
        multi_head: Its arguments, if it was ``F.multi_head_attention_forward``.
        behind: Whether keys beyond the queries' own were put behind them.
        late: Whether the model went on before it was shown.
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
        """Whether both attend with the same hidden states, rather than one with what the other gave."""
        return self.query is not None and self.query == other.query
