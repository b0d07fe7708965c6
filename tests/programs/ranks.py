"""Small fits that run the same in one process and in several; a program for each of several.

``python -m programs.ranks <directory> <scenario>...`` with the environment of a rank (see :func:`main`) runs
the scenarios and leaves ``<scenario>.<rank>.pickle`` behind, each with what :func:`run` returns.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lightning_geo import Alerts, Collector, GeometryMonitor, Level, Rule
from lightning_geo.measurement.sample import Measurement
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.monitor.batch_observation import BatchObservation
from lightning_geo.monitor.open_sample import OpenSample
from lightning_geo.monitor.probe_replay import ProbeReplay
from lightning_geo.probe.recorder import CallRecorder
from lightning_geo.storage.finding import Finding
from programs import rank_fits
from programs.rank_failures import (
    failing_fit,
    fails_late,
    strict_fit,
    unprepared,
    without_calls,
    without_data,
    without_given,
    without_state,
)
from programs.rank_fits import Dropping, Module, TwoTowers, fit, rank, world_size
from support.lit import FIRST_TOKEN, sequences
from support.registry import nothing_registered, register

WORLD_SIZE = 2
#: Whether ``fully_shard`` runs on a CPU, as that of torch 2.6 does not.
FULLY_SHARDS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
#: The families that single scores are needed for, and one that takes whole rows.
SCORES = ["entropy", "gates", "score_spectra"]


def counting(calls: Counter[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, each call of which counts under its name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[function.__name__] += 1
        return function(*args, **kwargs)

    return call


def counted(directory: Path, every: int) -> Counter[str]:
    """Collective operations that a fit makes from Python."""
    calls: Counter[str] = Counter()
    names = ("all_gather", "all_gather_object", "all_reduce", "broadcast", "broadcast_object_list", "barrier")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(dist, name, counting(calls, getattr(dist, name))))
        fit(directory, GeometryMonitor(every), Module())
    return calls


def collectives(directory: Path) -> dict[str, Any]:
    """What a sample costs: six steps have samples at 0 and 6, or at each of 0 to 6."""
    few, many = counted(directory / "few", 6), counted(directory / "many", 1)
    many.subtract(few)
    return {"per_sample": {name: count / 5 for name, count in many.items() if count}}


def dropping(directory: Path) -> dict[str, Any]:
    module = Module(Dropping)

    def drop(step: int) -> None:
        module.model.dropped = rank() if step == 2 else None  # type: ignore[union-attr]

    monitor = GeometryMonitor(2, source="batch", special_token_ids=[FIRST_TOKEN])
    return fit(directory, monitor, module, before=drop)


def stopped(directory: Path) -> dict[str, Any]:
    """A finding of rank 0 stops training, and has a checkpoint saved, on all ranks."""
    told: list[Finding] = []
    rule = Rule("seen", ("entropy",), Level(at_least=0.0), "{where}")
    alerts = Alerts(rules=[rule], notify=told.append, stop="warning", checkpoint="warning")
    result = fit(directory, GeometryMonitor(1, metrics=["entropy"], alerts=alerts), Module())
    kept = sorted(path.name for path in directory.rglob("geometry-*.ckpt"))
    return result | {"told": [finding.rule for finding in told], "kept": kept}


def resumed(directory: Path) -> dict[str, Any]:
    """Two sessions: a checkpoint at step 4, then from it to step 8."""
    path = directory / "middle.ckpt"
    first = fit(directory, GeometryMonitor(2), Module(), validate=True, steps=4, save=path)
    second = fit(directory, GeometryMonitor(2), Module(), validate=True, steps=8, ckpt_path=path)
    return {**second, "records": [*first["records"], *second["records"]]}


class Sharded(Module):
    """Its parameters are split over the ranks by ``fully_shard``: the older FSDP needs an accelerator."""

    def configure_model(self) -> None:
        if world_size() > 1:
            for layer in self.model.bert.encoder.layer:  # type: ignore[union-attr]
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


def sharded(directory: Path) -> dict[str, Any]:
    """The training batch is observed: the probe under sharding is in :mod:`programs.sharded_ranks`."""
    options: dict[str, Any] = {}
    if world_size() > 1:
        options["strategy"] = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        )
    metrics = ["entropy", "subspace", "importance"]
    monitor = GeometryMonitor(2, metrics=metrics, source="batch", importance_every_n_samples=1)
    return fit(directory, monitor, Sharded(), **options)


def one_by_one(directory: Path) -> dict[str, Any]:
    """Batches of one sequence on each rank; the probe has as many as the sanity check shows."""
    with patch.object(rank_fits, "BATCH", 2):
        monitor = GeometryMonitor(3, metrics=SCORES)
        result = fit(directory, monitor, Module(), validate=True, num_sanity_val_steps=3)
    share = monitor._run.samples.inputs.share(torch.device("cpu"))
    return {**result, "replayed": sum(call.rows for call in share.calls)}


def shared_loader(directory: Path) -> dict[str, Any]:
    """A given dataloader that shuffles: every rank has to replay its part of the same sequences."""
    order = torch.Generator().manual_seed(rank())
    data = DataLoader(sequences(32, seed=3), 4, shuffle=True, generator=order)  # type: ignore[arg-type]
    return fit(directory, GeometryMonitor(3, probe=data, module="model"), Module())


def budget(directory: Path) -> dict[str, Any]:
    """The ranks' clocks disagree on what a sample costs."""
    monitor = GeometryMonitor(max_overhead=0.3 if rank() == 0 else 0.9)
    return fit(directory, monitor, Module(), steps=12)


def scheduled(directory: Path) -> dict[str, Any]:
    """A schedule that depends on the rank, and fails on one."""

    def due(step: int) -> bool:
        if rank() == 1 and step == 3:
            raise RuntimeError("injected")
        return step % 2 == rank()

    return fit(directory, GeometryMonitor(schedule=due), Module())


def foreign(directory: Path) -> dict[str, Any]:
    """Metrics from outside, of which a function and a collector fail on rank 1 alone in the second sample."""
    now = 0

    def proceed(step: int) -> None:
        nonlocal now
        now = step

    def faulty(entropy: Tensor) -> Tensor:
        if rank() == 1 and now == 3:
            raise ArithmeticError("function")
        return entropy

    class Faulty(Collector):
        offers = frozenset({"own"})

        def attention(self, layer: Any, key: Any, call: Any) -> None:
            if rank() == 1 and now == 3 and "1" in key.module:
                raise ArithmeticError("collector")
            shape = call.query.shape[:2]
            self.add_by_sequence(layer, {"own": torch.full(shape, 1.0 + rank())}, shape)

    with nothing_registered():
        register("faulty", faulty)
        register("largest", lambda x: x, ("max_logit",), summary="max")
        register("collected", lambda x: x, ("own",), collector=Faulty)
        monitor = GeometryMonitor(3, metrics=["entropy", "max_logit", "faulty", "largest", "collected"])
        return fit(directory, monitor, Module(), validate=True, before=proceed)


def hooked(directory: Path) -> dict[str, Any]:
    """Rank 1 alone has a forward hook of the user's, which replays leave out."""
    module = Module()
    if rank() == 1:
        module.model.register_forward_hook(lambda *_: None)
    return fit(directory, GeometryMonitor(3), module)


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "validation": lambda d: fit(d, GeometryMonitor(2), Module(), validate=True),
    "training": lambda d: fit(d, GeometryMonitor(2, probe_size=5), Module()),
    "one_sequence": lambda d: fit(d, GeometryMonitor(3, probe_size=1), Module(), validate=True),
    "scores": lambda d: fit(d, GeometryMonitor(3, metrics=SCORES), Module(), validate=True),
    "scores_of_training": lambda d: fit(d, GeometryMonitor(3, metrics=SCORES), Module()),
    "one_by_one": one_by_one,
    "batch": lambda d: fit(
        d, GeometryMonitor(2, source="batch"), Module(), accumulate_grad_batches=2, steps=4
    ),
    "two_towers": lambda d: fit(d, GeometryMonitor(3), TwoTowers()),
    "given": shared_loader,
    "importance": lambda d: fit(
        d, GeometryMonitor(3, metrics=["entropy", "importance"], importance_every_n_samples=1), TwoTowers()
    ),
    "importance_of_batches": lambda d: fit(
        d,
        GeometryMonitor(2, metrics=["entropy", "importance"], source="batch", importance_every_n_samples=1),
        Module(),
        accumulate_grad_batches=2,
        steps=4,
    ),
    "stopped": stopped,
    "resumed": resumed,
    "dropping": dropping,
    "fails_in_replay": lambda d: failing_fit(d, "probe", nn.Embedding, "forward"),
    "fails_before_replay": lambda d: failing_fit(d, "probe", ProbeReplay, "replay"),
    "fails_in_observation": lambda d: failing_fit(d, "batch", SampleStatistics, "attention"),
    "fails_before_observation": lambda d: failing_fit(d, "batch", OpenSample, "begin"),
    "fails_in_first_replay": lambda d: failing_fit(d, "probe", SampleStatistics, "attention", at=0),
    "fails_in_first_observation": lambda d: failing_fit(d, "batch", OpenSample, "begin", at=0),
    "fails_in_packing": lambda d: failing_fit(d, "batch", SampleStatistics, "named"),
    "budget": budget,
    "schedule": scheduled,
    "unprepared": unprepared,
    "collectives": collectives,
    "no_call_begins_at_the_data": lambda d: without_data(d, (0, 1)),
    "none_begins_there_on_rank_0": lambda d: without_data(d, (0,)),
    "none_begins_there_on_rank_1": lambda d: without_data(d, (1,)),
    "no_validation_call_begins_there": lambda d: without_data(d, (0, 1), validate=True),
    "foreign": foreign,
    "one_has_hooks": hooked,
    "one_fails_late": fails_late,
    "one_fails_before_a_crash": lambda d: fails_late(d, crash=True),
    "one_cannot_record": lambda d: without_calls(d, CallRecorder, "settled"),
    "one_cannot_take_the_given": without_given,
    "one_cannot_load": without_state,
    "one_cannot_derive": lambda d: without_calls(d, Measurement, "derive"),
    "one_cannot_pause": lambda d: failing_fit(d, "batch", BatchObservation, "pause"),
    "sharded": sharded,
    "strict": strict_fit,
}
if not FULLY_SHARDS:
    del SCENARIOS["sharded"]


def run(
    scenario: str, directory: Path, scenarios: dict[str, Callable[[Path], dict[str, Any]]] = SCENARIOS
) -> dict[str, Any]:
    """Run one scenario on this rank."""
    torch.manual_seed(0)
    return scenarios[scenario](directory / scenario)


def main(scenarios: dict[str, Callable[[Path], dict[str, Any]]] = SCENARIOS) -> None:
    """Rank ``LOCAL_RANK`` of ``WORLD_SIZE``, meeting at ``MASTER_ADDR``:``MASTER_PORT``."""
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    # a rank that waits in vain gives up, instead of keeping the tests for half an hour
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    directory = Path(sys.argv[1])
    for scenario in sys.argv[2:]:
        result = run(scenario, directory, scenarios)
        with (directory / f"{scenario}.{rank()}.pickle").open("wb") as file:
            pickle.dump(result, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
