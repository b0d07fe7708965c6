"""Small fits that run the same in one process and in several; a program for each of several.

``python -m programs.ranks <directory> <scenario>...`` with the environment of a rank (see :func:`main`) runs
the scenarios and leaves ``<scenario>.<rank>.pickle`` behind, each with what :func:`run` returns.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from lightning_geo import Alerts, Collector, GeometryMonitor, GeometryRecord, Level, Rule
from lightning_geo.measurement.sample import Measurement
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.monitor.batch_observation import BatchObservation
from lightning_geo.monitor.open_sample import OpenSample
from lightning_geo.monitor.probe_replay import ProbeReplay
from lightning_geo.monitor.sampler import Sampler
from lightning_geo.probe.recorder import CallRecorder
from lightning_geo.probe.source import ProbeSource
from lightning_geo.storage.finding import Finding
from support.lit import FIRST_TOKEN, Lit, bert, sequences, trainer
from support.registry import nothing_registered, register

WORLD_SIZE = 2
#: Whether ``fully_shard`` runs on a CPU, as that of torch 2.6 does not.
FULLY_SHARDS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
#: Sequences of a batch, over all ranks.
BATCH = 8
#: The families that single scores are needed for, and one that takes whole rows.
SCORES = ["entropy", "gates", "score_spectra"]


def model() -> nn.Module:
    """A BERT of spread weights: of near-equal vectors the directions would be a matter of rounding."""
    return bert(heads=8, dropout=0.0, initializer_range=0.3, cls_token_id=FIRST_TOKEN)


class Module(Lit):
    """A classifier whose steps do not amplify rounding, as Adam's do where a gradient is nothing else."""

    def __init__(self, build: Callable[[], nn.Module] = model) -> None:
        super().__init__(build)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TwoTowers(Module):
    """The second model gets a single sequence per rank."""

    def __init__(self) -> None:
        super().__init__()
        self.second = model()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        few = {name: x[: len(x) // 4] for name, x in batch.items()}
        return super().loss(batch) + self.second(**few).loss  # type: ignore[no-any-return]


class Dropping(nn.Module):
    """Attention layers of which each rank leaves out another one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 16)
        layers = (nn.TransformerEncoderLayer(16, 2, 16, 0.0, batch_first=True) for _ in range(3))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(16, 2)
        self.dropped: int | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        x = self.embed(input_ids)
        for index, layer in enumerate(self.layers):
            if index != self.dropped:
                x = layer(x, src_key_padding_mask=~attention_mask.bool())
        self.loss = nn.functional.cross_entropy(self.head(x.mean(1)), labels)
        return self


class Watcher(pl.Callback):
    """Keeps every new record of a monitor, and calls ``before(step)`` ahead of each step."""

    def __init__(self, monitor: GeometryMonitor, before: Callable[[int], object] = lambda step: None) -> None:
        self.monitor = monitor
        self.before = before
        self.records: list[GeometryRecord] = []

    def _keep(self) -> None:
        record = self.monitor.last_record
        if record is not None and (not self.records or self.records[-1] is not record):
            self.records.append(record)

    def on_train_batch_start(self, *_: Any) -> None:
        self._keep()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._keep()
        self.before(trainer.global_step)

    def on_fit_end(self, *_: Any) -> None:
        self._keep()  # the last sample is taken after every `on_train_end`


class CrashError(Exception):
    """Ends a fit on purpose."""


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def trimmed(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Padding up to the longest of the batch, so that it differs from rank to rank."""
    longest = max(int(item["attention_mask"].sum()) for item in batch)
    return {
        name: torch.stack([item[name][:longest] if item[name].dim() else item[name] for item in batch])
        for name in batch[0]
    }


def batches(count: int, seed: int) -> DataLoader[Any]:
    """This rank's part of the same batches, whatever the number of ranks."""
    data = sequences(count, length=24, seed=seed)
    sampler = DistributedSampler(data, world_size(), rank(), shuffle=False)  # type: ignore[arg-type]
    return DataLoader(data, BATCH // world_size(), sampler=sampler, collate_fn=trimmed)  # type: ignore[arg-type]


def fit(
    directory: Path,
    monitor: GeometryMonitor,
    module: pl.LightningModule,
    *,
    validate: bool = False,
    before: Callable[[int], object] = lambda step: None,
    steps: int = 6,
    ckpt_path: Path | None = None,
    save: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """One fit; what came of it on this rank."""
    watcher = Watcher(monitor, before)
    if dist.is_initialized():
        strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
        options = {"strategy": strategy, "devices": world_size(), "use_distributed_sampler": False, **options}
    runner = trainer(directory / f"rank_{rank()}", monitor, watcher, steps=steps, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with contextlib.suppress(CrashError):
            runner.fit(module, batches(64, 0), batches(32, 1) if validate else None, ckpt_path=ckpt_path)
    if save is not None:
        runner.save_checkpoint(save)
    return {
        "records": watcher.records,
        "steps": runner.global_step,
        "loss": [float(loss) for loss in getattr(module, "losses", ())],
        "callback_metrics": {name: float(value) for name, value in runner.callback_metrics.items()},
        "warnings": [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)],
        "files": sorted(path.name for path in Path(runner.default_root_dir).rglob("*tfevents*")),
    }


@contextlib.contextmanager
def failing(owner: Any, name: str, fails: Callable[[Any], bool]) -> Iterator[None]:
    """While open, a method raises where ``fails(self)``."""
    original = getattr(owner, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if fails(self):
            raise RuntimeError("injected")
        return original(self, *args, **kwargs)

    with patch.object(owner, name, method):
        yield


def failing_fit(
    directory: Path, source: Any, owner: Any, name: str, at: int = 2, strict: bool = False
) -> dict[str, Any]:
    """Rank 1 alone fails in the sample of one step."""
    now = 0

    def fails(self: Any) -> bool:
        # a module of the model does so in eval mode alone, in which only the replay runs it
        return rank() == 1 and now == at and not getattr(self, "training", False)

    def proceed(step: int) -> None:
        nonlocal now
        now = step

    with failing(owner, name, fails):
        return fit(directory, GeometryMonitor(2, source=source, strict=strict), Module(), before=proceed)


def strict_fit(directory: Path) -> dict[str, Any]:
    """What each rank raises where rank 1 fails."""
    try:
        return failing_fit(directory, "probe", ProbeReplay, "replay", strict=True)
    except RuntimeError as error:
        return {"raised": str(error)}


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
    with patch(f"{__name__}.BATCH", 2):
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


def unprepared(directory: Path) -> dict[str, Any]:
    """Rank 1 alone fails before the first step."""
    with failing(Sampler, "__init__", lambda self: rank() == 1):
        return fit(directory, GeometryMonitor(2), Module())


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


class Parts(Module):
    """The embedding and the encoder of a BERT are children; no call of one that attends begins at the data.

    Args:
        needs_trainer: Whether its step can be replayed on this rank: one that reads what only its trainer has
            cannot.
    """

    def __init__(self, needs_trainer: bool) -> None:
        super().__init__()
        whole: Any = self.model
        self.embeddings, self.encoder, self.head = whole.bert.embeddings, whole.bert.encoder, whole.classifier
        del self.model
        self.needs_trainer = needs_trainer

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.needs_trainer:
            assert len(self.trainer.callbacks) > 0
        hidden = self.embeddings(batch["input_ids"])
        mask = batch["attention_mask"][:, None, None].bool()
        hidden = self.encoder(hidden, attention_mask=mask).last_hidden_state
        return nn.functional.cross_entropy(self.head(hidden[:, 0]), batch["labels"])


def without_data(directory: Path, ranks: tuple[int, ...], validate: bool = False) -> dict[str, Any]:
    """On these ranks nothing can be replayed from the data on."""
    module = Parts(rank() in ranks)
    return fit(directory, GeometryMonitor(2, metrics=["entropy", "drift"]), module, validate=validate)


def fails_late(directory: Path, crash: bool = False) -> dict[str, Any]:
    """Rank 1 alone fails in a hook, when no more samples are to come."""
    now = 0

    class Crashing(Module):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            if crash and batch_idx == 3:
                raise CrashError
            return super().training_step(batch, batch_idx)

    def proceed(step: int) -> None:
        nonlocal now
        now = step

    with failing(BatchObservation, "pause", lambda self: rank() == 1 and now == (2 if crash else 5)):
        return fit(directory, GeometryMonitor(4, source="batch"), Crashing(), before=proceed)


def without_given(directory: Path) -> dict[str, Any]:
    """Rank 1 alone cannot try the probe that the user gave."""
    probe = DataLoader(sequences(32, seed=3), 4)  # type: ignore[arg-type]
    with failing(ProbeReplay, "divides", lambda self: rank() == 1):
        return fit(directory, GeometryMonitor(2, probe=probe, module="model"), Module())


def without_state(directory: Path) -> dict[str, Any]:
    """Rank 1 alone cannot use the checkpoint's state of the monitor."""
    path = directory / "middle.ckpt"
    fit(directory, GeometryMonitor(2), Module(), validate=True, steps=4, save=path)
    with failing(ProbeSource, "load_state_dict", lambda self: rank() == 1):
        return fit(directory, GeometryMonitor(2), Module(), validate=True, steps=8, ckpt_path=path)


def without_calls(directory: Path, owner: Any, name: str, source: Any = "probe") -> dict[str, Any]:
    """Rank 1 alone fails once, where all ranks meet."""
    left = [1]

    def once(self: Any) -> bool:
        left[0] -= rank() == 1
        return rank() == 1 and left[0] >= 0

    with failing(owner, name, once):
        metrics = ["entropy", "importance"]
        monitor = GeometryMonitor(2, metrics=metrics, source=source, importance_every_n_samples=2)
        return fit(directory, monitor, Module())


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
