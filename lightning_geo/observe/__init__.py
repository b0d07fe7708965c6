"""How attention is observed, without the model noticing.

- What runs: ``tap`` (life cycle, hooks, events), ``module_stack`` and ``frames`` (modules that are running),
  ``switches`` (what is on for the whole process meanwhile), ``training`` (which calls count).
- Ways that attention is computed, one file each: ``sdpa``, ``routed`` (transformers), ``flex``, ``varlen``;
  and by hand: ``products``, ``by_hand``, ``carrying``, ``terms``, ``written``; ``gathering`` joins parts.
- What a call is, one source of evidence each, gathered in ``call_evidence``: ``tokens``, ``axes``, ``folds``,
  ``positions``, ``origins``, ``masks``; ``documents``, ``evidence``, ``spans``, ``isolation``, ``packing``.
- Where it goes: ``call``, ``observer``, ``coverage``; ``tree`` and ``rows`` number layers; ``search`` and
  ``projections`` find weights; ``scaling`` and ``slopes`` act on heads and listen to their gradient.
"""

from lightning_geo.observe.call import AttentionCall, BlockCall, CallKey
from lightning_geo.observe.coverage import UNOBSERVED, Coverage
from lightning_geo.observe.heads.head_gradients import SlopeHook
from lightning_geo.observe.heads.projections import Projections
from lightning_geo.observe.layers.numbering import Layout, lay_out, looks_like_attention, name_of
from lightning_geo.observe.tap import Observer, Tap

__all__ = [
    "UNOBSERVED",
    "AttentionCall",
    "BlockCall",
    "CallKey",
    "Coverage",
    "Layout",
    "Observer",
    "Projections",
    "SlopeHook",
    "Tap",
    "lay_out",
    "looks_like_attention",
    "name_of",
]
