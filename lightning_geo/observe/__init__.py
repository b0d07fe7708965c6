"""Attention in a running model, seen without the model noticing.

- ``tap`` opens and closes: hooks, what is switched for the process (``interception``), failures. It passes on
  to ``module_events`` (modules start and end) and ``attention_events`` (functions that compute attention).
- ``attention/``: the ways in which models compute attention, one file each; ``gathering`` joins calls
  that are parts of one attention.
- ``evidence/``: what is known about a call (axes, masks, positions, tokens), one source a file, gathered in
  ``call_evidence``; ``packed/``, ``packing`` and ``spans``: rows that hold several documents.
- ``layers/``: the modules that are running, and which layer of which stack a call belongs to.
- ``heads/``: projections of single heads, the gradients of their outputs, and scaling them.
- ``replay/``: running a model once more without a trace in training; ``module_selection``: which one.
- ``call``, ``observer`` and ``coverage``: what an observer is shown, and what was left out.
"""

from lightning_geo.observe.call import AttentionCall, BlockCall, CallKey
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
    "LayerNumbering",
    "Observer",
    "Projections",
    "Tap",
    "looks_like_attention",
    "name_of",
    "number_layers",
]
