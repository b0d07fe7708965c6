"""What is drawn: models, batches, monitors, Trainers and fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from run_machine.acts import ACTS_IN
from run_machine.attentions import ATTENTIONS
from run_machine.descriptions import CALLS, ROOTS, Batches, Model
from run_machine.failures import FAULTS, PLACES
from run_machine.loggers import LOGGERS
from run_machine.operations import Begin, Fit, Watch
from run_machine.parts import PARTS
from support.outside import WHEN

__all__ = ["begins", "data", "fits", "models", "watches"]


def models() -> st.SearchStrategy[Model]:
    """Descriptions of models."""
    return st.builds(
        Model,
        root=st.sampled_from(ROOTS),
        attention=st.sampled_from(sorted(ATTENTIONS)),
        parts=st.lists(st.sampled_from(sorted(PARTS)), max_size=3, unique=True).map(tuple),
        calls=st.sampled_from(CALLS),
        layers=st.integers(1, 2),
        tied=st.booleans(),
        gathers=st.booleans(),
        manual=st.sampled_from([False, False, True]),
    )


@st.composite
def data(draw: Callable[..., Any]) -> Batches:
    """Descriptions of batches of unequal lengths and keys."""
    count = draw(st.integers(2, 4))
    lengths = draw(
        st.lists(
            st.lists(st.integers(2, 7), min_size=1, max_size=3).map(tuple), min_size=count, max_size=count
        )
    )
    extra = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return Batches(tuple(lengths), tuple(extra), draw(st.booleans()), draw(st.integers(0, 2)))


_METRICS = (
    ("entropy",),
    ("entropy", "subspace", "cone", "stream"),
    ("entropy", "pattern", "head", "weights", "projection"),
    None,
)


@st.composite
def watches(draw: Callable[..., Any]) -> tuple[Watch, ...]:
    """Descriptions of one or two monitors."""
    made = []
    for name in ("geometry", "geometry2")[: draw(st.integers(1, 2))]:
        made.append(
            Watch(
                every=draw(st.integers(1, 3)),
                source=draw(st.sampled_from(["probe", "probe", "batch"])),
                metrics=draw(st.sampled_from(_METRICS)),
                max_queries=draw(st.sampled_from([None, None, 2, 4, 64])),
                probe_size=draw(st.sampled_from([16, 1, 3])),
                probe_in_checkpoint=draw(st.booleans()),
                name=name,
            )
        )
    return tuple(made)


@st.composite
def begins(draw: Callable[..., Any]) -> Begin:
    """Descriptions of Trainers."""
    return Begin(
        seed=draw(st.integers(0, 3)),
        loggers=tuple(draw(st.lists(st.sampled_from(sorted(LOGGERS)), max_size=3, unique=True))),
        accumulate=draw(st.sampled_from([1, 1, 2, 3])),
        watches=draw(watches()),
        monitors_first=draw(st.booleans()),
        validate_every=draw(st.sampled_from([None, 1, 2])),
        sanity=draw(st.sampled_from([0, 1, 2])),
    )


ACTS = ("copy", "pickle", "save", "nest", "evaluate")


@st.composite
def fits(draw: Callable[..., Any]) -> Fit:
    """Descriptions of fits: most go well, some fail, some have a fault in the monitor."""
    fit = Fit(
        steps=draw(st.integers(1, 4)), epochs=draw(st.sampled_from([False, False, True])),
        finished=draw(st.sampled_from(WHEN)),
    )  # fmt: skip
    kind = draw(st.sampled_from(["well", "acts", "acts", "fails", "fails", "fault"]))
    if kind == "acts":
        return replace(
            fit, acts=draw(st.sampled_from(ACTS)), acts_in=draw(st.sampled_from(ACTS_IN)),
            acts_at=draw(st.integers(0, 2)), other=draw(st.integers(0, 3)),
        )  # fmt: skip
    if kind == "fails":
        return replace(
            fit, fails=draw(st.sampled_from(PLACES)), count=draw(st.integers(0, 3)),
            interrupts=draw(st.sampled_from([False, False, True])),
        )  # fmt: skip
    if kind == "fault":
        return replace(
            fit, fault=draw(st.sampled_from(sorted(FAULTS))), fault_at=draw(st.sampled_from([0, 0, 1, 3])),
        )  # fmt: skip
    return fit
