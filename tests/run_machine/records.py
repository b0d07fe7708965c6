"""Every sample is where it belongs, once, and readable."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lightning_geo import load_history
from lightning_geo.storage.event_files import read_events
from lightning_geo.storage.events import parse_record
from lightning_geo.storage.places import place
from run_machine.logged import Finished
from run_machine.operations import Watch
from run_machine.runs import Run, Side
from run_machine.same_as_twin import same
from run_machine.sessions import Session
from run_machine.values import Claim

__all__ = ["Records"]


@dataclass
class _Due:
    required: set[int] = field(default_factory=set)
    optional: set[int] = field(default_factory=set)


class Records:
    """The samples that each place must have."""

    def __init__(self) -> None:
        self._due: dict[tuple[Path, str], _Due] = {}
        self._checked: dict[int, int] = {}
        #: by run, the directory of a record without a logger's
        self._versions: dict[int, Path] = {}
        self._files: set[Path] = set()
        #: by run and monitor, what its run of W&B's must have
        self._rows: dict[tuple[int, str], _Due] = {}
        #: what was recorded since the last check and is to be compared with the truth
        self.claims: list[Claim] = []
        #: how many samples were found, in records and in W&B's histories
        self.found = self.rows = 0

    def check(self, watched: Side, twin: Side, *, excused: bool) -> None:
        """Follow the sessions since the last check.

        Args:
            watched: The side with the records.
            twin: The side that tells what happened.
            excused: Whether something failed inside of the monitor: what is missing was then said.
        """
        self.claims = []
        now = set(watched.root.rglob("*.lightning_geo"))
        new, self._files = now - self._files, now
        for path in new:
            _check_order(path)
        for number, run in watched.runs.items():
            sessions = twin.runs[number].sessions
            fresh, self._checked[number] = sessions[self._checked.get(number, 0) :], len(sessions)
            mine = {path.parent for path in new if path.is_relative_to(run.folder)}
            new = {path for path in new if not path.is_relative_to(run.folder)}
            if not fresh:
                assert not mine, f"records were written without a fit: {mine}"
                continue
            place = self._place(run, fresh, mine)
            for session in fresh:
                for watch in _watches(watched, run):
                    self._follow(place, watch, session, run)
            if place is None:
                continue
            where = _written(run, place)
            for index, watch in enumerate(_watches(watched, run)):
                self._read(place, where, watch, watched.said if excused else [], watched)
                self._claim(where, index, run, len(sessions) - 1, fresh[-1])
        assert not new, f"records outside of the runs' places: {new}"
        assert not list(twin.root.rglob("*.lightning_geo"))

    def forget(self, number: int, watched: Side, twin: Side, *, excused: bool) -> None:
        """A run is no more; its folder may be another's now, and its run of W&B's is over."""
        self._checked.pop(number, None)
        due = {name: self._rows.pop((run, name)) for run, name in list(self._rows) if run == number}
        folder = watched.finished.get(number)
        if folder is None:
            return
        ours = Finished.read(folder)
        if number in twin.finished:
            same(ours.users, Finished.read(twin.finished[number]).users, f"run {number}: W&B")
        for name in ("geometry", "geometry2"):
            rows, where = ours.samples(name), f"{folder}, {name}: W&B"
            self._compare(set(rows), due.get(name, _Due()), where, watched.said if excused else [], watched)
            self.rows += len(rows)

    def inherit(self, number: int, origin: int) -> None:
        """A run goes on in the folder of another."""
        if origin in self._versions:
            self._versions[number] = self._versions[origin]

    def _place(self, run: Run, sessions: list[Session], written: set[Path]) -> Path | None:
        if run.places:
            place = run.places[0]
            where = _written(run, place)
            assert written <= {where}, f"run {run.number} belongs to {where}, but wrote to {written}"
            return place
        root, before = run.folder / "lightning_geo", self._versions.get(run.number)
        assert len(written) <= len(sessions), f"run {run.number} wrote to {written}"
        if not written:
            return before
        assert all(place.parent == root for place in written), written
        place = max(written, key=lambda path: int(path.name.removeprefix("version_")))
        if before is not None and (sessions[-1].begun or 0) > 0:
            assert place == before, f"run {run.number} went on in {place} instead of {before}"
        elif sessions[-1].begun == 0:
            assert place not in self._versions.values(), f"run {run.number} wrote into {place} of another"
        self._versions[run.number] = place
        return place

    def _follow(self, place: Path | None, watch: Watch, session: Session, run: Run) -> None:
        if session.begun is None or place is None:
            return
        due = self._due.setdefault((place, watch.name), _Due())
        begun = session.begun
        if begun == 0:  # what an earlier attempt wrote may stay until there is a new sample
            due.required, due.optional = set(), due.required | due.optional
        else:
            due.optional = {s for s in due.optional | due.required if s <= begun}
            due.required = {s for s in due.required if s < begun}
        required = {s for s in session.entered if s % watch.every == 0}
        if watch.source == "batch":
            required = {s for s in required if s < session.step}
        elif session.finished:
            required.add(session.step)
        optional = set(required)
        due.optional |= optional
        if session.error and session.entered:
            required.discard(session.entered[-1])
            if not session.finished:
                required.discard(session.step)
        if begun > 0:  # it may have been taken before the checkpoint was written, elsewhere
            required.discard(begun)
        due.required |= required
        rows = self._rows.setdefault((run.number, watch.name), _Due())
        rows.required, rows.optional = rows.required | required, rows.optional | optional

    def _read(self, place: Path, where: Path, watch: Watch, said: list[str], watched: Side) -> None:
        try:
            steps = set(load_history(where, watch.name).steps.tolist())
        except (FileNotFoundError, ValueError):
            steps = set()
        self.found += len(steps)
        self._compare(
            steps, self._due.get((place, watch.name), _Due()), f"{place}, {watch.name}", said, watched
        )

    @staticmethod
    def _compare(steps: set[int], due: _Due, where: str, said: list[str], watched: Side) -> None:
        extra, missing = steps - due.required - due.optional, due.required - steps
        late = any("nothing to replay" in line for line in watched.said)  # the step after makes up for it
        # the user's own step may fail when it is run once more, at a time at which training does not run it
        dropped = any("a sample was dropped: InjectedError: at " in line for line in watched.said)
        assert not extra or late, f"{where}: {extra} do not belong here, {due}"
        assert said or late or dropped or not missing, (
            f"{where}: {missing} are missing of {due}: {watched.said}"
        )

    def _claim(self, place: Path, index: int, run: Run, session: int, taken: Session) -> None:
        """Note what a session recorded with a probe, to be compared with its snapshots.

        Samples of earlier sessions stay in the record where this one took none of its own: it resumed at
        their step, or was interrupted before it trained, and its state at that step is another.
        """
        watch = run.begin.watches[index]
        probe = run.monitors[index]._run.samples.inputs.probe
        if watch.source != "probe" or probe is None:
            return
        try:
            history = load_history(place, watch.name)
        except (FileNotFoundError, ValueError):
            return
        for sample, step in enumerate(history.steps.tolist()):
            if history.metadata["wall_time"][sample] < run.sessions[-1].started:
                continue
            fingerprint = history.metadata["probe_fingerprint"][sample]
            if step in taken.snapshots and fingerprint == probe.fingerprint:
                record = history.record(sample)
                error = record["entropy.stderr"] if "entropy.stderr" in record else None  # noqa: SIM401, it is no mapping
                where = f"{place}, {watch.name}, step {step}"
                self.claims.append(
                    Claim(
                        where, run.number, session, step, index, fingerprint, watch.max_queries,
                        record["entropy"], error,
                    )
                )  # fmt: skip


def _check_order(path: Path) -> None:
    """Each session writes each of its samples once, in the order of steps."""
    steps: dict[str, list[int]] = {}
    for event in read_events(place(path)):
        if (found := parse_record(event)) is not None:
            steps.setdefault(found[0], []).append(found[1].step)
    for name, taken in steps.items():
        assert taken == sorted(set(taken)), f"{path}, {name}: samples of steps {taken} in this order"


def _written(run: Run, place: Path) -> Path:
    """Where the record of a run is: W&B makes a directory at each start."""
    online = run.online if place.name == "wandb" else None
    return place if online is None else Path(online.dir)


def _watches(side: Side, run: Run) -> list[Watch]:
    """Descriptions of a run's monitors: those of the run that it has them from."""
    return list(run.begin.watches)
