"""Programs of operations in two processes: each compares its watched side with its unwatched twin.

``python -m run_machine.two_ranks <directory>`` with the environment of a rank runs every program whose path
it is given on a line of its input, and answers each with a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from hypothesis import strategies as st
from pytorch_lightning.strategies import DDPStrategy

from lightning_geo.measurement.collectors import attention_rows
from lightning_geo.probe.probe import Probe, Share
from run_machine.descriptions import Batches, Model
from run_machine.failures import FAULTS as ANY
from run_machine.left_behind import Patches, check_files
from run_machine.machine import quiet
from run_machine.operations import Begin, Fit
from run_machine.records import Records
from run_machine.runs import Side
from run_machine.same_as_twin import check_same
from run_machine.strategies import begins, data, fits, models
from run_machine.values import Claim, Rows, confirm

__all__ = ["PATIENCE", "RANKS", "Program", "programs"]

RANKS = 2
#: Seconds after which ranks that wait for each other have failed.
PATIENCE = int(os.environ.get("PATIENCE", "60"))

#: What may fail inside of the monitor on one rank alone: all but what makes collectives from end to end.
FAULTS = tuple(sorted(ANY.keys() - {"a sample is concluded"}))


@dataclass(frozen=True)
class Program:
    """What both ranks do.

    Args:
        model: Of all runs.
        batches: Of all runs; the ranks have other batches.
        begin: The first run.
        operations: A :class:`Fit` of the newest run, ``"save"``, ``"again"`` (a new Trainer with the same
            monitors) or ``"resume"``.
        faulty: The rank on which something fails inside of the monitor.
        plant: What is wrong on purpose, in :data:`PLANTS`: for tests of the checks.
    """

    model: Model
    batches: Batches
    begin: Begin
    operations: tuple[Fit | str, ...]
    faulty: int = 0
    plant: str = ""


@st.composite
def programs(draw: Callable[..., Any]) -> Program:
    """Descriptions of programs."""
    operations: list[Fit | str] = [draw(_fits())]
    for _ in range(draw(st.integers(1, 3))):
        operations += draw(
            st.sampled_from([(Fit(),), ("save", "resume", Fit(2)), ("again", Fit(3)), (Fit(1, acts="save"),)])
        )
        operations.append(draw(_fits()))
    model = draw(models())
    # two calls before a backward write buffers twice, which DDP broadcasts; locks are no matter of ranks
    parts = tuple(p for p in model.parts if p not in ("locked", "normed", "batch norm", "rescaled"))
    model = replace(model, parts=parts, calls="once")
    return Program(model, draw(data()), draw(begins()), tuple(operations), draw(st.integers(0, 1)))


@st.composite
def _fits(draw: Callable[..., Any]) -> Fit:
    fit: Fit = draw(fits())
    if fit.fault is not None:
        return replace(fit, fault=draw(st.sampled_from(FAULTS)))
    # one rank's fit within another's, and Ctrl-C, are the launcher's business
    return replace(fit, acts="" if fit.acts == "nest" else fit.acts, interrupts=False)


# -- what is planted


@contextlib.contextmanager
def _loses() -> Iterator[None]:
    """Count nothing of rank 1's."""
    share = Probe.share

    def lost(self: Probe, rank: int, world_size: int) -> Share:
        mine = share(self, rank, world_size)
        return mine if rank == 0 else Share([], [*mine.calls, *mine.uncounted])

    with patch.object(Probe, "share", lost):
        yield


@contextlib.contextmanager
def _misjudges() -> Iterator[None]:
    """Report standard errors of sixteen times the size."""
    variance = attention_rows.variance_of_mean
    with patch.object(attention_rows, "variance_of_mean", lambda *args: 256 * variance(*args)):
        yield


#: Both ranks find these at the same place, and go on with the next program.
PLANTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "": contextlib.nullcontext, "loses": _loses, "misjudges": _misjudges
}  # fmt: skip


# -- a rank


def run(program: Program, root: Path, rank: int) -> dict[str, int]:
    """Do it on this rank, and compare; how much there was to compare."""
    patches, records = Patches(), Records()
    watched, twin = (
        Side(
            root / name,
            program.model,
            program.batches,
            watched=name == "watched",
            rank=rank,
            options=_options,
        )
        for name in ("watched", "twin")
    )
    excused = False
    counts = {"compared": 0, "estimates": 0}

    def each(operation: Callable[[Side], object]) -> None:
        for side in (twin, watched):
            with side.turn():
                operation(side)
        dist.barrier()  # both ranks read what rank 0 writes
        check_same(watched, twin)
        if rank == 0:
            records.check(watched, twin, excused=excused)
        claims = _from_rank_0(records.claims)
        for done, number in zip(counts, confirm(claims, watched, twin, _gathered, rank, RANKS), strict=True):
            counts[done] += number
        patches.check()
        check_files(watched, twin)
        dist.barrier()  # before the other rank writes on

    each(lambda side: side.begin(program.begin))
    number = 0
    for operation in program.operations:
        if isinstance(operation, Fit):
            excused |= operation.fault is not None
            fit = operation if rank == program.faulty else replace(operation, fault=None)
            each(lambda side, number=number, fit=fit: side.fit(number, fit))  # type: ignore[misc]
        elif operation == "save":
            each(lambda side, number=number: side.save(number))  # type: ignore[misc]
        else:
            begin = replace(program.begin, monitors_of=number)
            if operation == "resume":
                each(lambda side, begin=begin: side.resume(-1, begin, True))  # type: ignore[misc]
            else:
                each(lambda side, begin=begin: side.begin(begin))  # type: ignore[misc]
            number = watched.count - 1
    assert rank == 0 or not records.found
    for number in list(watched.runs):
        for side in (twin, watched):
            with side.turn():
                side.forget(number)
        records.forget(number, watched, twin, excused=excused)
    return {**counts, "samples": records.found, "rows of W&B": records.rows}


def _from_rank_0(claims: list[Claim]) -> list[Claim]:
    given = [claims]
    dist.broadcast_object_list(given)
    return given[0]


def _gathered(rows: Rows) -> list[Rows]:
    everyone: list[Rows] = [[] for _ in range(RANKS)]
    dist.all_gather_object(everyone, rows)
    return everyone


def _options() -> dict[str, Any]:
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    return {"strategy": strategy, "devices": RANKS, "use_distributed_sampler": False}


def main() -> None:
    """Rank ``LOCAL_RANK`` of ``WORLD_SIZE``, meeting at ``MASTER_ADDR``:``MASTER_PORT``."""
    torch.set_num_threads(1)
    quiet()
    directory, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    with (directory / f"answers.{rank}").open("w", buffering=1) as answers:
        answers.write(f"{os.getpid()}\n")
        dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
        with (directory / f"programs.{rank}").open() as given:
            for number, line in enumerate(given):
                program, root = pickle.loads(Path(line.strip()).read_bytes()), directory / f"program_{number}"
                try:
                    with PLANTS[program.plant]():
                        answer = f"well {json.dumps(run(program, root, rank))}"
                except Exception:
                    answer = traceback.format_exc()
                (directory / f"answer_{number}.{rank}").write_text(answer)
                answers.write(f"answered {number}\n")
                if not answer.startswith("well") and not program.plant:
                    break
                dist.barrier()
                if rank == 0:
                    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
