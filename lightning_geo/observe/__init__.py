"""Observe attention in a running model without changing the model.

- ``tap`` adds and removes hooks and process-wide patches (``interception``), and keeps failures. It passes
  events to ``module_events`` (modules start and end) and ``attention_events`` (functions that compute
  attention); ``counted_calls`` decides which calls count.
- ``narrow_tap`` observes some blocks of a model alone, and ``same_events`` compares what two taps show.
- ``attention/``: the ways in which models compute attention, one per file; ``gathering`` joins calls that are
  parts of one attention.
- ``evidence/``: the axes, masks, positions and tokens of a call, one source per file, gathered in
  ``call_evidence``; ``packed/``, ``packing`` and ``spans``: rows that hold several documents.
- ``layers/``: the running modules, and the layer and stack of each call.
- ``heads/``: projections of single heads, the gradients of their outputs, and scaling them.
- ``replay/``: runs a model again without a trace in training; ``module_selection``: selects the model.
- ``call``, ``observer`` and ``coverage``: the events that an observer receives, and those left out.
"""

from lightning_geo.observe.call import AttentionCall, BlockCall, CallKey, HeadSlice
from lightning_geo.observe.coverage import UNOBSERVED, Coverage
from lightning_geo.observe.heads.head_gradients import HeadGradientHook
from lightning_geo.observe.heads.projections import Projections
from lightning_geo.observe.layers.numbering import (
    LayerNumbering,
    looks_like_attention,
    name_of,
    number_layers,
)
from lightning_geo.observe.tap import Observer, Tap

__all__ = [
    "UNOBSERVED",
    "AttentionCall",
    "BlockCall",
    "CallKey",
    "Coverage",
    "HeadGradientHook",
    "HeadSlice",
    "LayerNumbering",
    "Observer",
    "Projections",
    "Tap",
    "looks_like_attention",
    "name_of",
    "number_layers",
]
