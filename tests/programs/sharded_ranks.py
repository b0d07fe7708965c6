"""Small fits whose parameters are split over processes by ``fully_shard``; see :mod:`programs.sharding`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lightning_geo import GeometryMonitor
from lightning_geo.measurement.sample import Measurement
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.monitor.open_sample import OpenSample
from lightning_geo.monitor.probe_replay import ProbeReplay
from lightning_geo.probe.source import ProbeSource
from programs import rank_fits
from programs.rank_failures import failing
from programs.rank_fits import Dropping, Module, TwoTowers, fit, rank, world_size
from support.lit import sequences, trainer

#: Families that need nothing but the forward pass.
METRICS = ["entropy", "pattern", "cone", "subspace", "stream", "head"]


def split(module: nn.Module, mesh: Any, **options: Any) -> None:
    """Shard every layer of a BERT, and the rest of it."""
    for layer in module.bert.encoder.layer:  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(module, mesh=mesh, **options)


class Sharded(Module):
    """Its parameters are split over all processes by ``fully_shard``."""

    def configure_model(self) -> None:
        if world_size() > 1 and not isinstance(self.model, FSDPModule):
            split(self.model, self.device_mesh["data_parallel"])


class ShardedTowers(TwoTowers):
    """Two sharded models, of which some processes have no sequence of the second."""

    def configure_model(self) -> None:
        if world_size() > 1 and not isinstance(self.model, FSDPModule):
            split(self.model, self.device_mesh["data_parallel"])
            split(self.second, self.device_mesh["data_parallel"])


class Backwards(Dropping):
    """Layers of several sizes that run in the opposite of their order; what fails in one is left out."""

    def __init__(self, lenient: bool = False) -> None:
        super().__init__()
        layers = (nn.TransformerEncoderLayer(16, 2, width, 0.0, batch_first=True) for width in (16, 24, 40))
        self.layers = nn.ModuleList(layers)
        self.lenient = lenient

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        x = self.embed(input_ids)
        for layer in reversed(self.layers):
            try:
                x = layer(x, src_key_padding_mask=~attention_mask.bool())
            except RuntimeError:
                if not self.lenient:
                    raise
        self.loss = nn.functional.cross_entropy(self.head(x.mean(1)), labels)
        return self


class ShardedBackwards(Module):
    """The same, each layer and each of its parts of its own."""

    def configure_model(self) -> None:
        if not isinstance(self.model, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            for layer in self.model.layers:  # type: ignore[union-attr]
                fully_shard(layer.linear1, mesh=mesh)
                fully_shard(layer, mesh=mesh)
            fully_shard(self.model, mesh=mesh)


def options() -> dict[str, Any]:
    """A strategy that shards over all processes."""
    if world_size() == 1:
        return {}
    sizes = {"data_parallel_size": world_size(), "tensor_parallel_size": 1}
    return {"strategy": ModelParallelStrategy(**sizes, process_group_backend="gloo")}  # type: ignore[arg-type]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters, gathered; of FSDP1 and DeepSpeed the part of this rank."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else getattr(p, "ds_tensor", p)).detach().clone()
        for name, p in module.named_parameters()
    }


def sharded(directory: Path, build: Callable[[], Module] = Sharded, **arguments: Any) -> dict[str, Any]:
    """A fit with a probe, and the parameters that it ends with."""
    module = build()
    monitor = GeometryMonitor(2, **{"metrics": METRICS, **arguments})
    result = fit(directory, monitor, module, validate=True, **options())
    return result | {"weights": weights_of(module)}


def resumed(directory: Path) -> dict[str, Any]:
    """Two sessions: a checkpoint at step 4, of which each process has a part, then from it to step 8."""
    path, records = directory / "middle.ckpt", []
    for steps, more in ((4, {"save": path}), (8, {"ckpt_path": path})):
        monitor = GeometryMonitor(2, metrics=METRICS)
        result = fit(directory, monitor, Sharded(), validate=True, steps=steps, **more, **options())
        records += result["records"]
    return result | {"records": records}


def unmonitored(directory: Path) -> dict[str, Any]:
    """The same fit without a monitor."""
    module = Sharded()
    parallel = {"devices": world_size(), "use_distributed_sampler": False} if world_size() > 1 else {}
    runner = trainer(directory / f"rank_{rank()}", steps=6, **parallel, **options())
    runner.fit(module, rank_fits.batches(64, 0), rank_fits.batches(32, 1))
    return {"loss": [float(loss) for loss in module.losses], "weights": weights_of(module)}


@contextlib.contextmanager
def failing_on_one(owner: Any, name: str, at: int = 2, times: int = 1_000) -> Iterator[Callable[[int], None]]:
    """Rank 1 alone fails in the sample of one step; yields what is to be called with each step."""
    now, left = 0, times

    def fails(self: Any) -> bool:
        nonlocal left
        fits = rank() == 1 and now == at and not getattr(self, "training", False)
        left -= fits
        return fits and left >= 0

    def proceed(step: int) -> None:
        nonlocal now
        now = step

    with failing(owner, name, fails):
        yield proceed


def injected(
    directory: Path, failure: tuple[Any, ...], build: Callable[[], Module] = Sharded
) -> dict[str, Any]:
    """A fit in which rank 1 alone fails."""
    with failing_on_one(*failure) as proceed:
        module = build()
        result = fit(directory, GeometryMonitor(2, metrics=METRICS), module, before=proceed, **options())
    return result | {"weights": weights_of(module)}


def poisoned(directory: Path) -> dict[str, Any]:
    """Rank 1's weights hold a NaN in the sample of one step: no failure, but no number either."""
    original = nn.LayerNorm.forward
    now = 0

    def forward(self: nn.LayerNorm, x: Tensor) -> Tensor:
        y = original(self, x)
        return y * torch.nan if rank() == 1 and now == 2 and not self.training else y

    def proceed(step: int) -> None:
        nonlocal now
        now = step

    with patch.object(nn.LayerNorm, "forward", forward):
        return fit(directory, GeometryMonitor(2, metrics=METRICS), Sharded(), before=proceed, **options())


def given(directory: Path) -> dict[str, Any]:
    """A probe that the user gives: its trial runs the model before training does."""
    probe = DataLoader(sequences(32, seed=3), 4)  # type: ignore[arg-type]
    monitor = GeometryMonitor(2, metrics=METRICS, probe=probe, module="model")
    return fit(directory, monitor, Sharded(), **options())


def scheduled(directory: Path) -> dict[str, Any]:
    """A schedule of the user's that says something else on rank 1."""
    monitor = GeometryMonitor(schedule=lambda step: step % 2 == rank(), metrics=METRICS)
    return fit(directory, monitor, Sharded(), **options())


class Sent(TorchDispatchMode):
    """Counts collectives, and the bytes that each leaves on this process."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.__name__.partition(".")[0]
            self.counts[name] += 1
            first = args[0] if isinstance(args[0], Tensor) else args[0][0]
            self.sizes[name] += first.nbytes
        return func(*args, **(kwargs or {}))


def costs(directory: Path) -> dict[str, Any]:
    """What each sample sends, and how many full parameters it holds; the same of training."""
    sent, module = list[Sent](), Sharded()
    peaks: dict[bool, int] = {False: 0, True: 0}
    replaying, left = False, []
    original, unsharded = ProbeReplay.replay, FSDPParamGroup._to_unsharded

    def gathered() -> int:
        states = [part._get_fsdp_state() for part in module.modules() if isinstance(part, FSDPModule)]
        groups = [group for state in states for group in state._fsdp_param_groups]
        return sum(p._orig_size.numel() for g in groups if g.is_unsharded for p in g.fsdp_params)

    def replay(self: ProbeReplay, share: Any, *args: Any) -> Any:
        nonlocal replaying
        replaying, calls = True, [*share.calls, *share.uncounted]
        sent.append(Sent())
        with sent[-1]:
            result = original(self, share, *args)
        replaying = False
        left.append((gathered(), len(calls), share.rounds))
        return result

    def note(self: FSDPParamGroup) -> None:
        unsharded(self)
        peaks[replaying] = max(peaks[replaying], gathered())

    with patch.object(ProbeReplay, "replay", replay), patch.object(FSDPParamGroup, "_to_unsharded", note):
        result = fit(directory, GeometryMonitor(2, metrics=METRICS), module, validate=True, **options())
    sizes = [
        sum(p.numel() for p in part.parameters()) for part in module.modules() if isinstance(part, FSDPModule)
    ]
    return result | {
        "sent": [(each.counts, each.sizes) for each in sent],
        "peaks": peaks,
        "left": left,
        "sizes": sizes,
    }


#: Owner and name of the method that fails on rank 1 alone, at which step, how often.
FAILURES: dict[str, tuple[Any, ...]] = {
    "fails_in_share": (ProbeSource, "share"),
    "fails_in_begin": (OpenSample, "begin"),
    "fails_in_observe": (Measurement, "observe"),
    "fails_in_hook": (SampleStatistics, "attention"),
    "fails_in_block": (SampleStatistics, "block"),
    "fails_in_packing": (SampleStatistics, "named"),
    "fails_in_model": (nn.LayerNorm, "forward"),
    "fails_in_model_once": (nn.LayerNorm, "forward", 2, 1),
    "fails_in_first_model": (nn.LayerNorm, "forward", 0),
}

#: Of models whose layers run in another order than they are listed, the second of which does without one.
BACKWARDS = {
    "backwards": lambda: ShardedBackwards(Backwards),
    "lenient": lambda: ShardedBackwards(partial(Backwards, lenient=True)),
}

SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{
        f"{name}_{how}": partial(injected, failure=(nn.LayerNorm, "forward", at), build=build)
        for name, build in BACKWARDS.items()
        for how, at in {"unhindered": -1, "fails": 0}.items()
    },
    "sharded": sharded,
    "unmonitored": unmonitored,
    "resumed": resumed,
    "one_sequence": lambda d: sharded(d, probe_size=1),
    "weighed": lambda d: sharded(d, metrics=["entropy", "importance", "weights", "updates"]),
    "towers": lambda d: sharded(d, ShardedTowers),
    "unhindered": partial(injected, failure=(nn.Embedding, "forward", -1)),
    "poisoned": poisoned,
    "costs": costs,
    "layers": lambda d: sharded(d, layers=[1]),
    "given": given,
    "scheduled": scheduled,
    **{name: partial(injected, failure=failure) for name, failure in FAILURES.items()},
}
