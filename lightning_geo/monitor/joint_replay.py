"""Replay the probe on all ranks in step, where each of them has a part of the parameters only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from lightning_geo.observe.replay.replica import Replica
from lightning_geo.observe.replay.undisturbed_run import Call
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.probe import Share
from lightning_geo.utils.errors import let_go

__all__ = ["run_together"]

_Context = Callable[[], AbstractContextManager[object]]
_StandIn = Callable[[Call, str], Replica]


def run_together(
    share: Share,
    discard: Callable[[], None],
    measure: Callable[[ProbeCall], None],
    stand_in: _StandIn,
    context: _Context,
) -> Exception | None:
    """Run calls of one kind after the other, of each as many as the rank with most of them has.

    A rank with fewer runs one of its calls again, unobserved. A model that raises on one rank alone costs the
    sample, and no rank waits: this rank gathers what the others still gather, and goes on with the next call.

    Args:
        share: This rank's share of the probe.
        discard: Forgets what was measured; called before the uncounted calls and before the others.
        measure: Runs a call observed.
        stand_in: Returns what replays a call of the model of that name.
        context: The trainer's precision.

    Returns:
        The first error; after it this rank measures nothing.
    """
    everything = (*share.uncounted, *share.calls)
    kinds = dict.fromkeys([*share.rounds, *(call.kind for call in everything)])
    failure: Exception | None = None
    for call in everything:
        gathering = stand_in(call.call, call.model).gathering
        if gathering is not None and gathering.lockstep is not None:
            gathering.lockstep.begin()
    for counted, calls in enumerate((share.uncounted, share.calls)):
        try:
            discard()
        except Exception as error:
            failure = failure or let_go(error)
        for kind in kinds:
            own = [call for call in calls if call.kind == kind]
            spare = next(call for call in everything if call.kind == kind)
            replica = stand_in(spare.call, spare.model)
            rounds = share.rounds.get(kind, (len(own), len(own)))[counted]
            for recorded in [*own, *[None] * (rounds - len(own))]:
                replayed = None if failure is not None else recorded
                gathering = replica.gathering
                if failure is not None and gathering is not None and gathering.lockstep is not None:
                    gathering.make_up()  # the spare has other sequences than the group's pass
                    continue
                failure = _run_one(replica, replayed, spare, measure, context) or failure
    return failure


def _run_one(
    replica: Replica,
    recorded: ProbeCall | None,
    spare: ProbeCall,
    measure: Callable[[ProbeCall], None],
    context: _Context,
) -> Exception | None:
    """Make one call that all ranks make: observed, or for the others' sake alone."""
    gathering, failure, passes = replica.gathering, None, 0
    if gathering is not None:
        gathering.kind, passes = spare.kind, gathering.forwards
    if recorded is not None:
        try:
            measure(recorded)
        except Exception as error:
            failure = let_go(error)
    if gathering is None or gathering.forwards > passes:
        return failure
    try:  # nothing ran, or failed before the model began
        replica.try_out(spare.call.run, context)
        with replica.running() as model, replica.once(model), context():
            spare.call.run(model)
    except Exception as error:
        failure = failure or let_go(error)
    if gathering.forwards == passes:
        gathering.make_up()
    return failure
