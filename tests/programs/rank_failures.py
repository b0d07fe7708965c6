"""Small fits in which one rank alone fails, or has nothing to replay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_geo import GeometryMonitor
from lightning_geo.monitor.batch_observation import BatchObservation
from lightning_geo.monitor.probe_replay import ProbeReplay
from lightning_geo.monitor.sampler import Sampler
from lightning_geo.probe.source import ProbeSource
from programs.rank_fits import CrashError, Module, fit, rank
from support.lit import sequences


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


def unprepared(directory: Path) -> dict[str, Any]:
    """Rank 1 alone fails before the first step."""
    with failing(Sampler, "__init__", lambda self: rank() == 1):
        return fit(directory, GeometryMonitor(2), Module())


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
