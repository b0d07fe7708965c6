"""Descriptions by how attention is computed."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from harness.description import BY_HAND, WINDOWS, Description
from harness.drawing import Draw, Drawing, scattered

__all__ = ["by_hand", "flex", "modules", "sdpa", "sdpa_axes"]

_AXES = ("folded", "folded_h_major", "single", "list", "heads_first", *WINDOWS, "grouped")


@scattered
@st.composite
def sdpa(draw: Draw) -> Description:
    """Models that call ``F.scaled_dot_product_attention`` on [B, H, N, D]."""
    return _sdpa(draw, ("bhnd",))


@scattered
@st.composite
def sdpa_axes(draw: Draw) -> Description:
    """Models that call it on other axes."""
    return _sdpa(draw, _AXES)


def _sdpa(draw: Draw, axes: Sequence[str]) -> Description:
    x = Drawing(draw, "sdpa")
    x.sizes(axes)
    x.grouped()
    x.sequences()
    x.one_of("scale", ("default", "given"))
    x.alibi()
    numbers = ("inf", "min", "-10000", "-1000", "-100")
    x.mask(numbers[:3] if x.is_["bias"] == "alibi" else ("bool", *numbers))
    x.parts()
    x.tree()
    x.precision()
    return x.done()


@scattered
@st.composite
def by_hand(draw: Draw) -> Description:
    """Models that call softmax themselves."""
    how = draw(st.sampled_from(BY_HAND))
    x = Drawing(draw, how)
    axes = ("bhnd",) * 4 + _AXES
    x.sizes({"einsum": ("bnhd", *axes), "baddbmm": ("folded", "folded", "folded_h_major")}.get(how, axes))
    x.grouped()
    x.sequences()
    x.one_of("softmax", ("functional", "torch", "method", "float32", "module", "sequential"))
    x.one_of("scale", ("default",) if how == "baddbmm" else ("default", "given", "query"))
    d = x.done()
    if how != "baddbmm" and d.axes != "bnhd" and not d.crosses and d.keys == "own":
        x.one_of("between", ("none", "none", "sequential"))
    x.is_["bias"] = "none"
    if x.is_.get("between", "none") == "none":
        x.alibi()
    numbers = () if x.is_["bias"] == "alibi" else ("-1000", "-100")
    x.mask(("masked_fill", "where", "inf", "min", "-10000", *numbers))
    x.parts()
    x.tree()
    x.precision()
    return x.done()


@scattered
@st.composite
def flex(draw: Draw) -> Description:
    """Models that call ``flex_attention``."""
    x = Drawing(draw, "flex")
    x.sizes(("bhnd",))
    x.grouped()
    x.sequences()
    x.alibi()
    x.mask(("bool",))
    x.tree()
    x.precision(("float32",))
    return x.done()


@scattered
@st.composite
def modules(draw: Draw) -> Description:
    """Models that use ``nn.MultiheadAttention``, or torch's encoder and decoder."""
    how = draw(st.sampled_from(("mha", "mha", "encoder", "decoder")))
    x = Drawing(draw, how)
    x.sizes(("bhnd",))
    x.is_["declared"] = "none"
    x.one_of("batch_first", (True, False))
    if how == "decoder":
        x.one_of("source", ("memory_position", "memory_keyword"))
        x.memory()
        x.is_["self_too"] = True
        x.structure("decoder")
        x.is_["structure"] = "causal" if x.is_["structure"] == "sparse" else x.is_["structure"]
    elif how == "encoder":
        x.one_of("structure", ("full", "causal", "window"))
    else:
        kind = x.one_of("source", ("self", "self", "normed", "memory_position", "memory_keyword"))
        if kind.startswith("memory"):
            x.memory()
        x.structure("mha")
        if kind in ("self", "normed"):
            x.one_of("keys", ("own", "own", "bias_kv", "zero_attn"))
        x.one_of("need_weights", (False, True))
    if how != "mha":
        x.one_of("norm_first", (False, True))
    if x.is_["length"] > 1:
        x.padding("modules")
    _modules_masks(x)
    if how == "mha":
        x.tree()
    x.precision(("float32", "float32", "float64", "bfloat16"))
    return x.done()


def _modules_masks(x: Drawing) -> None:
    """Rows that see nothing are NaN in torch's modules: there, finite numbers hide."""
    if x.done().blind and x.is_["how"] != "mha":
        x.is_["structure"] = "full"
    d = x.done()
    hides = d.structure != "full" or d.padding != "none"
    if not hides:
        x.is_["values"] = "none"
    elif d.blind:
        x.one_of("values", ("-10000", "-1000", "-100"))
    else:
        x.one_of("values", ("bool", "inf", "-10000", "-1000", "-100"))
    x.one_of("shape", ("qk", "bhqk") if d.how == "mha" else ("qk",))
    if d.padding != "none":
        x.one_of("padding_mask", (True, False) if d.how == "mha" else (True,))
    if not d.self_too:
        x.is_["values"] = "bool"
