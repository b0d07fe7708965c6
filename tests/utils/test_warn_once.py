"""Warnings that several ranks have are emitted once, by rank 0 if they reach it."""

from __future__ import annotations

import warnings

import pytest

from lightning_geo.utils import ranks, warn_once
from lightning_geo.utils.errors import ArgumentError, ArgumentTypeError, SettingError, SettingTypeError
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
        self._given = [list(each._pending) for each in self.each]
        for rank, each in enumerate(self.each):
            self.now = rank
            each.exchange()


def test_rank_0_emits_the_warnings_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Ranks(4, monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            for rank, each in enumerate(several.each):
                several.now = rank
                each.warn("everybody knows", f"here {rank}")
                if rank in (1, 3):
                    each.warn("two know", f"here {rank}")
                if rank == 2:
                    each.report("one failed", ValueError("there"))
            several.exchange()
    assert [str(w.message).removeprefix("GeometryMonitor: ") for w in caught] == [
        "everybody knows: here 0",
        "ranks 1, 3: two know: here 1",
        "rank 2: one failed: ValueError: there (training goes on, warned once)",
    ]
    assert [each.pending for each in several.each] == [0, 0, 0, 0]


def test_errors_that_rank_0_knows_are_not_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Ranks(2, monkeypatch)
    several.now = 1
    monkeypatch.setattr(ranks, "everyones", lambda value: [None, value])
    own = ranks.failure_of_any_rank(ValueError("injected"))
    several.each[1].report("a sample was dropped", own)
    assert several.each[1].pending == 0
    monkeypatch.setattr(ranks, "everyones", lambda value: ["KeyError: another", value])
    several.each[1].report("a sample was dropped", ranks.failure_of_any_rank(OSError("disk")))
    assert several.each[1].pending == 1


def test_pending_warnings_are_emitted_by_their_own_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Ranks(2, monkeypatch)
    several.now = 1
    several.each[1].warn("it is late")
    with pytest.warns(UserWarning, match="GeometryMonitor: rank 1: it is late"):
        several.each[1].warn_of_pending()
    assert several.each[1].pending == 0


def test_a_warning_says_which_of_two_monitors_gives_it() -> None:
    with pytest.warns(UserWarning, match=r"^GeometryMonitor \(batch\): it is late$"):
        WarnOnce(strict=False, name="batch").warn("it is late")


@pytest.mark.parametrize("kind", [ArgumentError, ArgumentTypeError, SettingError, SettingTypeError])
def test_what_fails_a_sample_ends_no_run_but_for_a_wrong_setting_before_training(
    kind: type[ArgumentError],
) -> None:
    warn_once = WarnOnce(strict=False)
    if issubclass(kind, SettingError):
        with pytest.raises(kind, match="no layer 9"):
            warn_once.report("a sample was dropped", kind("no layer 9"))
        warn_once.late = True
    with pytest.warns(UserWarning, match=f"a sample was dropped: {kind.__name__}: no layer 9"):
        warn_once.report("a sample was dropped", kind("no layer 9"))
