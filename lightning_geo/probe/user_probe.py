"""A probe from the user, tried on the models before training begins."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from lightning_geo.observe import name_of
from lightning_geo.observe.replay.undisturbed_run import Call, undisturbed
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.candidates import Candidates
from lightning_geo.probe.probe import Probe, Share, probe_from
from lightning_geo.utils.errors import SettingError
from lightning_geo.utils.ranks import rank, world_size

__all__ = ["given_probe"]


def given_probe(given: Any, size: int, tokens: int | None, candidates: Candidates) -> Probe:
    """Find the candidate that accepts the user's inputs, on every rank.

    Args:
        given: A batch or a dataloader.
        size: Sequences to take of a dataloader.
        tokens: Tokens to take of a dataloader; None for no limit.
        candidates: The models that may be observed.

    Raises:
        SettingError: If no candidate accepts them.
    """
    calls = _calls(given, size, tokens, candidates)
    reasons, unprepared = [], None
    for name in candidates.models:
        probe, share, failure = None, None, None
        try:
            recorded = [ProbeCall.of(name, call) for call in calls]
            probe = Probe([c if not c.divisible or candidates.divides(c) else c.whole() for c in recorded])
            share = Share(probe.calls).to(candidates.device)
        except Exception as error:  # ranks that replay together wait for this one
            failure = error
        unprepared = unprepared or failure
        failure = candidates.replay(share, (), failure=failure)
        if failure is None and probe is not None:
            return probe
        named = name_of(name, candidates.models[name])
        reasons.append(f"{named}: {type(failure).__name__}: {failure}")
    if unprepared is not None:
        raise unprepared
    raise SettingError(
        "Expected `probe` to be inputs that the observed model takes (a mapping is keyword arguments, a "
        f"tuple positional ones, a tensor the one argument) but every candidate failed. {' | '.join(reasons)}"
    )


def _calls(given: Any, size: int, tokens: int | None, candidates: Candidates) -> list[Call]:
    """Return rank 0's calls on every rank: a shuffling dataloader yields other sequences on each."""
    box: list[Any] = [None]
    if rank() == 0:
        try:
            # Starting a dataloader draws a random number: restore the generators afterwards.
            with undisturbed(next(iter(candidates.models.values()))):
                box = [probe_from(given, size, tokens)]
        except Exception as error:
            box = [SettingError(f"Expected `probe` to be a batch or a dataloader but {error}.")]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    if isinstance(box[0], Exception):
        raise box[0]
    calls: list[Call] = box[0]
    return calls
