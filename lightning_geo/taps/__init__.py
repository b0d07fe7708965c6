"""How attention is observed: one file per way that it is computed, one for the module tree."""

from lightning_geo.taps.call import AttentionCall, BlockCall, CallKey
from lightning_geo.taps.coverage import UNOBSERVED, Coverage
from lightning_geo.taps.projections import Projections
from lightning_geo.taps.slopes import SlopeHook
from lightning_geo.taps.tap import Observer, Tap
from lightning_geo.taps.tree import Layout, lay_out, looks_like_attention, name_of

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
