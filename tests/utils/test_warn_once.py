"""What several ranks have to say is said once, by rank 0 where it can be told."""

from __future__ import annotations

import warnings

import pytest

from lightning_geo.utils import ranks, warn_once
from lightning_geo.utils.warn_once import WarnOnce


class Ranks:
    """Lets this process be each of several ranks in turn."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.each = [WarnOnce(strict=False) for _ in range(size)]
        self.now = 0
        for module in (warn_once, ranks):
            monkeypatch.setattr(module, "rank", lambda: self.now)
        self._given: list[object] = []
        monkeypatch.setattr(warn_once, "everyones", lambda value: self._given)

    def exchange(self) -> None:
        self._given = [list(each._unsaid) for each in self.each]
        for rank, each in enumerate(self.each):
            self.now = rank
            each.exchange()


def test_rank_0_says_what_others_have_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Ranks(4, monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            for rank, each in enumerate(several.each):
                several.now = rank
                each.say("everybody knows", f"here {rank}")
                if rank in (1, 3):
                    each.say("two know", f"here {rank}")
                if rank == 2:
                    each.report("one failed", ValueError("there"))
            several.exchange()
    assert [str(w.message).removeprefix("GeometryMonitor: ") for w in caught] == [
        "everybody knows: here 0",
        "ranks 1, 3: two know: here 1",
        "rank 2: one failed: ValueError: there (training goes on, said once)",
    ]
    assert [each.unsaid for each in several.each] == [0, 0, 0, 0]


def test_what_rank_0_was_told_is_not_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Ranks(2, monkeypatch)
    several.now = 1
    monkeypatch.setattr(ranks, "everyones", lambda said: [None, said])
    own = ranks.failure_of_any_rank(ValueError("injected"))
    several.each[1].report("a sample was dropped", own)
    assert several.each[1].unsaid == 0
    monkeypatch.setattr(ranks, "everyones", lambda said: ["KeyError: another", said])
    several.each[1].report("a sample was dropped", ranks.failure_of_any_rank(OSError("disk")))
    assert several.each[1].unsaid == 1


def test_what_could_not_be_told_is_said_by_those_who_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Ranks(2, monkeypatch)
    several.now = 1
    several.each[1].say("it is late")
    with pytest.warns(UserWarning, match="GeometryMonitor: rank 1: it is late"):
        several.each[1].say_the_rest()
    assert several.each[1].unsaid == 0
