"""Strategies: a valid description by construction, every draw depending on those before it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from harness.description import BY_HAND, WINDOWS, Description

__all__ = ["Draw", "Drawing", "scattered"]

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[Any]], Any]

_DECLARED = ("num_heads", "heads", "n_head", "num_attention_heads", "config", "none")
_TREES = (
    "list", "sequential", "stages", "nested", "forward", "repeated", "checkpoint", "checkpoint_reentrant",
    "checkpoint_forward", "scripted", "attributes",
)  # fmt: skip


class Drawing:
    """Draws one description, dimension by dimension; what is drawn so far is in ``is_``."""

    def __init__(self, draw: Draw, how: str) -> None:
        self.draw = draw
        self.is_: dict[str, Any] = {"how": how, "seed": draw(st.integers(0, 99))}

    def one_of(self, name: str, values: Sequence[T]) -> T:
        """Draw one of the values; simple ones come first, so that shrinking ends there."""
        value: T = self.draw(st.sampled_from(list(values)))
        self.is_[name] = value
        return value

    def done(self) -> Description:
        return Description(**self.is_)

    # -- sizes and axes

    def sizes(self, axes: Sequence[str]) -> None:
        """Batch, length, heads; equal to each other as often as small numbers are."""
        axis = self.one_of("axes", axes)
        self.one_of("batch", (1, 2, 3, 4))
        self.one_of("layers", (1, 2, 3))
        self.one_of("head_size", (8, 4))
        heads = self.one_of(
            "heads", {"single": (1,), "grouped": (4, 2, 6), "list": (2, 3, 4)}.get(axis, (2, 3, 4, 1))
        )
        self.is_["kv_heads"] = heads
        if axis in WINDOWS:
            windows = self.one_of("windows", (2, 3, 4))
            self.is_["length"] = windows * self.draw(st.sampled_from((4, 3, 6)))
        else:
            self.one_of("length", (6, 3, 8, 4, 12, 2, 1))
        names = [name for name in _DECLARED if axis != "list" or name != "heads"]
        self.one_of("declared", names)

    def grouped(self, fused: bool = True) -> None:
        """Fewer heads of keys than of queries, where heads allow it."""
        heads, axes, how = self.is_["heads"], self.is_["axes"], self.is_["how"]
        if axes == "grouped":
            self.one_of("kv_heads", [n for n in (2, 1, 3) if heads % n == 0 and n < heads])
        elif axes != "list" and heads > 1:
            several = ["none", "repeat", "expand"]
            several += ["enable_gqa"] * (how in ("sdpa", "flex") and axes == "bhnd")
            if self.one_of("grouping", several) != "none":
                self.one_of("kv_heads", [n for n in (1, 2) if heads % n == 0 and n < heads])
        self.one_of("projection", ("separate", "fused"))

    # -- what is seen

    def sequences(self) -> None:
        """Self or cross, keys in front, packed rows: one of them at most, and then structure and padding."""
        axes, length, how = self.is_["axes"], self.is_["length"], self.is_["how"]
        kinds = ["plain", "plain", "plain", "normed"]
        if axes not in WINDOWS:
            kinds += ["memory_position", "memory_keyword"]
            kinds += ["packed"] if length > 1 else []
            kinds += ["prefix", "cache"] if axes != "list" else []
        kind = self.draw(st.sampled_from(kinds))
        if kind.startswith("memory"):
            self.is_["source"] = kind
            self.memory()
        elif kind == "normed":
            self.is_["source"] = kind
        elif kind in ("prefix", "cache"):
            self.is_["keys"] = kind
            self.one_of("extra", (2, 1, 5))
        self.structure(kind)
        if kind == "packed":
            self.pack()
        elif axes not in WINDOWS and length > 1:
            self.padding(kind)
        if self.is_.get("told", "none") != "lengths" and how not in ("encoder", "decoder"):
            self.one_of("inputs", ("embeddings", "ids"))

    def memory(self) -> None:
        batch = self.is_["batch"]
        # the same length as the queries' is the one that misleads
        length = self.one_of("memory_length", dict.fromkeys((self.is_["length"], 5, 3, 7)))
        if self.draw(st.booleans()):
            self.is_["memory_lengths"] = self.lengths(length, batch)
        self.one_of("self_too", (True, False))

    def lengths(self, longest: int, batch: int, least: int = 1) -> tuple[int, ...]:
        several = st.integers(min(least, longest), longest)
        return tuple(self.draw(several) for _ in range(batch))

    def structure(self, kind: str) -> None:
        axes = self.is_["axes"]
        if not self.is_.get("self_too", True):
            return
        if axes in WINDOWS:
            self.one_of("structure", ("full", "shifted"))
        elif kind == "cache":
            self.is_["structure"] = "causal"
        elif kind in ("packed", "prefix"):
            self.one_of("structure", ("full", "causal"))
        else:
            self.one_of("structure", ("full", "causal", "window", "sparse"))

    def pack(self) -> None:
        batch, length = self.is_["batch"], self.is_["length"]
        packed = self.one_of("packed", ("positions", "documents"))
        rows = []
        for _ in range(batch):
            row: list[int] = []
            while sum(row) < length:
                row.append(self.draw(st.integers(1, length - sum(row))))
            if packed == "documents" and len(row) > 1 and self.draw(st.booleans()):
                row.pop()  # padding, document 0
            rows.append(tuple(row))
        self.is_["documents"] = tuple(rows)

    def padding(self, kind: str) -> None:
        """Which side, how many, and whether the model is told."""
        batch, length = self.is_["batch"], self.is_["length"]
        bare = not self.is_.get("self_too", True)
        sides = ["none", "right", "left"]
        if kind == "cache":
            sides = ["none", "right"]
        if self.one_of("padding", sides) == "none":
            self.one_of("told", ("none", "int", "bool") if kind != "cache" else ("none", "int"))
            return
        self.is_["lengths"] = self.lengths(length, batch)
        names = ["int", "bool", "key_padding_mask", "none", "lengths"]
        if kind == "cache":
            names = ["int", "bool"]
        elif bare:  # nothing but the root's arguments knows of padded queries
            names = names[:3]
        self.one_of("told", names)

    def alibi(self) -> None:
        """A bias that grows with distance."""
        d = self.done()
        fits = d.axes != "list" and not d.crosses and d.heads > 1
        self.one_of("bias", ("none", "none", "alibi") if fits else ("none",))

    # -- masks

    def mask(self, hiding: Sequence[str]) -> None:
        """How what is not visible is hidden."""
        d = self.done()
        hides = d.structure != "full" or d.padding != "none" or d.packed != "none"
        told = d.told in ("int", "bool", "key_padding_mask")
        if not d.self_too:
            self.is_["values"] = hiding[0]
        elif not hides:
            self.one_of("values", ("none", *hiding) if d.how != "sdpa" or d.bias == "none" else hiding)
        else:
            values = list(hiding)
            plain = d.how == "sdpa" and d.axes in ("bhnd", "folded", "heads_first", "single", "list")
            if plain and d.structure == "causal" and d.packed == "none" and d.bias == "none":
                if d.padding == "none" and d.extra == 0:
                    values += ["is_causal"]
                    values += ["upper_left", "lower_right"] if d.axes == "bhnd" else []
                elif d.padding == "none" and d.axes == "bhnd":
                    values += ["lower_right"]
                elif d.padding == "right" and told and d.extra == 0:
                    values += ["is_causal"]
            if self._may_see_itself(d, told):
                values += ["eye"]
            self.one_of("values", values)
        self.shape()

    @staticmethod
    def _may_see_itself(d: Description, told: bool) -> bool:
        """Whether padding may see itself, and be known all the same.

        A causal mask whose last token is padding that sees itself is the causal mask of a longer sequence.
        """
        if d.structure == "sparse" or (d.how == "sdpa" and d.bias != "none"):
            return False
        decided = told or (d.structure == "full" and d.length > 2 and min(d.lengths, default=0) > 1)
        allowed = (
            d.source in ("self", "normed")
            and d.keys == "own"
            and d.packed == "none"
            and d.axes not in WINDOWS
        )
        return d.padding != "none" and d.how in ("sdpa", *BY_HAND) and decided and allowed

    def shape(self) -> None:
        """Of the mask: as few axes as say it, or more."""
        d = self.done()
        if d.values in ("none", "is_causal", "upper_left", "lower_right"):
            return
        if d.axes in WINDOWS:
            self.one_of("shape", ("11qk", "b1qk") if d.axes == "windows_bwhnd" else ("11qk",))
            return
        own = d.padding != "none" or d.packed != "none" or d.structure == "sparse"
        shapes = ["b1qk"] if own else ["qk", "11qk", "b1qk"]
        if d.axes == "list" or d.bias == "alibi":
            shapes = [s for s in shapes if s != "qk" or d.bias == "none"]
        else:
            shapes += ["bhqk"]
        if d.structure == "full" and d.packed == "none" and d.values != "eye" and d.bias == "none":
            shapes += ["b11k"] if d.padding != "none" else []
        self.one_of("shape", shapes)

    # -- the rest

    def parts(self) -> None:
        d = self.done()
        kinds = ["one", "one", "one"]
        plain = (
            d.source == "self" and d.keys == "own" and d.axes in ("bhnd", "folded") and d.grouping == "none"
        )
        if plain and d.how in ("sdpa", "matmul", "einsum", "baddbmm"):
            kinds += ["differential"] + ["joint"] * (d.how in BY_HAND) + ["discarded"] * (d.axes == "bhnd")
            if d.how != "baddbmm" and d.axes == "bhnd":
                kinds += ["channels"] * (d.layers > 1) + ["channels_only"]
        self.one_of("parts", kinds)

    def tree(self) -> None:
        d = self.done()
        trees = list(_TREES) + ["compiled"] * (d.seed % 5 == 0)
        if d.parts != "one" or d.layers == 1:
            trees.remove("repeated")
        if d.parts.startswith("channels"):
            trees.remove("stages")
            trees.remove("nested")
        if d.keys == "cache":
            trees = [t for t in trees if t not in ("sequential", "stages", "nested")]
        self.one_of("tree", trees)

    def precision(
        self, names: Sequence[str] = ("float32", "float32", "float32", "float64", "bfloat16")
    ) -> None:
        d = self.done()
        if d.tree == "scripted" or d.bias == "alibi":
            names = [n for n in names if n != "bfloat16"]
        self.one_of("dtype", names)


def scattered(
    strategy: Callable[..., st.SearchStrategy[Description]],
) -> Callable[[], st.SearchStrategy[Description]]:
    """Examples far from one another, as far as hypothesis lets us choose.

    After each example hypothesis tries five more in which one draw is copied over another: with descriptions
    these are nearly the same model again. Inside a collection of unique elements it does not.
    """

    @functools.wraps(strategy)
    def alone() -> st.SearchStrategy[Description]:
        return st.lists(strategy(), min_size=1, max_size=1, unique_by=repr).map(lambda drawn: drawn[0])

    return alone
