"""Whether recorded entropies are right: what a snapshot of the model says, dense and in float64."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from run_machine.attentions import Attention
from run_machine.failures import Failure
from run_machine.generators import generator_states, set_generator_states
from run_machine.models import Module
from run_machine.runs import Side
from run_machine.sessions import snapshot

__all__ = ["Claim", "Rows", "confirm", "rows_of_calls"]

#: By layer, the [head, row] entropies of each sequence.
Rows = list[list[NDArray[Any]]]

#: How many standard errors an estimate may be off. Sequences are drawn apart: with the same rows drawn in
#: each, estimates were off by more.
GENEROUS = 6.0


@dataclass(frozen=True)
class Claim:
    """What a record says of one sample.

    Args:
        where: Names the sample.
        run: Its run.
        session: Which of the run's sessions took it.
        step: Its step.
        watch: Which of the run's monitors took it.
        fingerprint: Of the probe.
        limit: ``max_queries``.
        entropy: [layer, head].
        error: [layer, head] standard errors; None where the record has none.
    """

    where: str
    run: int
    session: int
    step: int
    watch: int
    fingerprint: str
    limit: int | None
    entropy: NDArray[Any]
    error: NDArray[Any] | None

    def check(self, rows: Rows) -> bool:
        """Assert that it is right; whether it is an estimate.

        Two of seven rows say little of their own spread, so that an error of many reported standard errors
        proves nothing. What the rows make possible does: the mean lies between those of the lowest and the
        highest rows, within some of the true standard errors of the exact one, and the reported standard
        error between those of the most and the least similar rows.
        """
        exact = np.stack([np.mean([r.mean(-1) for r in layer], 0) for layer in rows])
        longest = max(r.shape[-1] for layer in rows for r in layer)
        tolerance: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-5}
        if self.limit is None or self.limit >= longest:
            np.testing.assert_allclose(self.entropy, exact, **tolerance, err_msg=self.where)
            assert self.error is None or not self.error.any(), f"{self.where}: no estimate has {self.error}"
            return False
        limits = [_Limits.of(layer, self.limit) for layer in rows]
        low, high, true, least, most = (
            np.stack([getattr(x, name) for x in limits]) for name in ("low", "high", "true", "least", "most")
        )
        slack = 2e-5 + 2e-4 * np.abs(exact)
        within = (low - slack <= self.entropy) & (self.entropy <= high + slack)
        assert within.all(), f"{self.where}: {self.entropy} is no estimate: not in {low} to {high}"
        off = np.abs(self.entropy - exact)
        assert (off <= GENEROUS * true + slack).all(), f"{self.where}: {self.entropy}, {exact} ± {true}"
        assert self.error is not None, f"{self.where}: an estimate without a standard error"
        slack = 5e-4 + 2e-3 * most
        within = (least - slack <= self.error) & (self.error <= most + slack)
        assert within.all(), f"{self.where}: {self.error} is no standard error: not in {least} to {most}"
        return True


@dataclass(frozen=True)
class _Limits:
    """[head] what estimates of one layer's mean can be, and their standard errors."""

    low: NDArray[Any]
    high: NDArray[Any]
    true: NDArray[Any]
    least: NDArray[Any]
    most: NDArray[Any]

    @classmethod
    def of(cls, layer: list[NDArray[Any]], limit: int) -> _Limits:
        """From the rows of each sequence, of which ``limit`` are drawn without replacement."""
        low: list[NDArray[Any]] = []
        high: list[NDArray[Any]] = []
        true: list[NDArray[Any]] = []
        least: list[NDArray[Any]] = []
        most: list[NDArray[Any]] = []
        for rows in (np.sort(r, -1) for r in layer):
            count = rows.shape[-1]
            drawn = min(limit, count)
            low.append(rows[:, :drawn].mean(-1))
            high.append(rows[:, -drawn:].mean(-1))
            share = 1 - drawn / count
            if not share:
                for variances in (true, least, most):
                    variances.append(np.zeros(len(rows)))
                continue
            true.append(share * rows.var(-1, ddof=1) / drawn)
            # rows are alike where they are neighbours, and differ most where they are from both ends
            alike = [rows[:, i : i + drawn].var(-1, ddof=1) for i in range(count - drawn + 1)]
            apart = [
                np.delete(rows, range(i, i + count - drawn), -1).var(-1, ddof=1) for i in range(drawn + 1)
            ]
            least.append(share * np.min(alike, 0) / drawn)
            most.append(share * np.max(apart, 0) / drawn)
        errors = (np.sqrt(np.sum(variances, 0)) / len(layer) for variances in (true, least, most))
        return cls(np.mean(low, 0), np.mean(high, 0), *errors)


def confirm(
    claims: Iterable[Claim],
    watched: Side,
    twin: Side,
    together: Callable[[Rows], list[Rows]] = lambda mine: [mine],
    rank: int = 0,
    ranks: int = 1,
) -> tuple[int, int]:
    """Compare what was recorded with what the twins of all ranks say; how many were compared, and estimates.

    Args:
        claims: The same on every rank.
        watched: The side with the monitors, which have the probe.
        twin: The side with the snapshots.
        together: Returns the rows of all ranks.
        rank: Of this process.
        ranks: How many there are.
    """
    compared = estimates = 0
    for claim in claims:
        probe = watched.runs[claim.run].monitors[claim.watch]._run.samples.inputs.probe
        assert probe is not None, f"{claim.where}: rank {rank} has no probe"
        assert probe.fingerprint == claim.fingerprint, f"{claim.where}: rank {rank} has another probe"
        model = twin.runs[claim.run].sessions[claim.session].snapshots[claim.step]
        mine = rows_of_calls(model, _dealt(probe.calls, rank, ranks))
        if mine is None:
            continue
        everyone = together(mine)
        layers = max(map(len, everyone))
        rows = [[r for theirs in everyone if theirs for r in theirs[layer]] for layer in range(layers)]
        estimates += claim.check(rows)
        compared += 1
    return compared, estimates


def _dealt(calls: Iterable[Any], rank: int, ranks: int) -> Iterator[Any]:
    """A rank's sequences: they are dealt out in turn, through all calls of a model."""
    turn: Counter[str] = Counter()
    for call in calls:
        count = call.rows if call.divisible else 1
        mine = [i for i in range(count) if (turn[call.model] + i) % ranks == rank]
        turn[call.model] += count
        if mine:
            yield call.take(slice(mine[0], None, ranks)) if ranks > 1 else call


def rows_of_calls(taken: Module, calls: Iterable[Any]) -> Rows | None:
    """Entropies in recorded calls of a snapshot; None where they are not known."""
    model = taken.model
    if model.attention == "bert" or (model.root == "stepwise" and model.calls != "once"):
        return None
    before, found = generator_states(), []
    try:
        for call in calls:
            running = _fresh(taken)
            set_generator_states(_SEEDED)
            seen: list[tuple[Attention, Tensor, Tensor]] = []
            for layer in running.layers:
                layer.seen = seen
            with torch.no_grad():
                _call(running, call)
            found.append([layer.entropies(x, visible) for layer, x, visible in seen])
    finally:
        set_generator_states(before)
    return [[r.numpy() for part in layer for r in part] for layer in zip(*found, strict=True)]


def _fresh(taken: Module) -> Module:
    made = snapshot(taken)
    made.failure = Failure()
    for module in made.modules():
        module.training = False
        module._forward_hooks.clear() if isinstance(module, Attention) else None
    return made


def _call(running: Module, recorded: Any) -> None:
    call = recorded.call
    if call.method in ("training_step", "validation_step"):
        running.loss(call.args[0])
    elif recorded.model:
        running.get_submodule(recorded.model)(*call.args, **call.kwargs)
    else:
        running(*call.args, **call.kwargs)


def _zero() -> tuple[Any, ...]:
    before = generator_states()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    states = generator_states()
    set_generator_states(before)
    return states


_SEEDED = _zero()
