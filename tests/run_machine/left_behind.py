"""Nothing is left behind: patches, open files, tensors."""

from __future__ import annotations

import collections
import gc
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from run_machine.attentions import Attention, Bert
from run_machine.models import Module
from run_machine.runs import Side
from support.open_files import open_files

__all__ = ["Patches", "check_files", "held_tensors", "live_tensors"]


class Patches:
    """Functions and switches of this process as they were."""

    def __init__(self) -> None:
        self._owners: dict[str, Any] = {
            "torch": torch, "torch.nn.functional": nn.functional, "torch.Tensor": Tensor,
            "torch.nn.Module": nn.Module, "torch.nn.MultiheadAttention": nn.MultiheadAttention,
            "torch.nn.TransformerEncoderLayer": nn.TransformerEncoderLayer,
            "torch.nn.modules.module": nn.modules.module, "torch.autograd.graph": torch.autograd.graph,
            "torch.utils.checkpoint": torch.utils.checkpoint, "pl.Trainer": pl.Trainer,
            "pl.LightningModule": pl.LightningModule, "AttentionInterface": AttentionInterface,
            "Attention": Attention, "Bert": Bert, "Module": Module,
        }  # fmt: skip
        self._before = {name: dict(vars(owner)) for name, owner in self._owners.items()}
        self._routes = dict(ALL_ATTENTION_FUNCTIONS._global_mapping)
        self._switches = self._now()

    def check(self) -> None:
        """Assert that all is as it was."""
        for name, owner in self._owners.items():
            for attribute, value in self._before[name].items():
                assert vars(owner).get(attribute) is value, f"{name}.{attribute} was replaced"
        assert dict(ALL_ATTENTION_FUNCTIONS._global_mapping) == self._routes
        assert self._now() == self._switches

    def _now(self) -> dict[str, Any]:
        return {
            "fast path": torch.backends.mha.get_fastpath_enabled(),
            "function modes": torch._C._len_torch_function_stack(),
            "dispatch modes": torch._C._len_torch_dispatch_stack(),
            "dtype": torch.get_default_dtype(),
            "gradients": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "stance": torch._dynamo.eval_frame._stance.stance,
            "global hooks": [
                len(hooks) for name, hooks in vars(nn.modules.module).items()
                if name.startswith("_global") and isinstance(hooks, dict)
            ],
            "trace": sys.gettrace() is None,
        }  # fmt: skip


def check_files(watched: Side, twin: Side) -> None:
    """No file is open that is not open on the other side."""
    ours, theirs = ([_ended(path, side.root) for path in open_files(side.root)] for side in (watched, twin))
    assert collections.Counter(ours) <= collections.Counter(theirs), f"{ours} are open, not just {theirs}"


def _ended(path: str, root: Path) -> str:
    """A file's directory, and its name where that is not one of the record's."""
    relative = Path(path).relative_to(root)
    relative = Path(re.sub(r"offline-run-[^/]+", "offline-run", str(relative)))  # with the time
    return str(relative) if relative.suffix == ".lightning_geo" else str(relative.parent)


def live_tensors() -> int:
    """How many tensors there are."""
    gc.collect()
    return sum(issubclass(type(x), Tensor) for x in gc.get_objects())


def held_tensors(side: Side) -> int:
    """How many tensors are the monitors' own: what they reach without a model, and their metrics."""
    runs = side.runs.values()
    waiting: list[Any] = [monitor for run in runs for monitor in run.monitors]
    waiting += [v for run in runs for k, v in run.trainer.callback_metrics.items() if "geometry" in k]
    seen: set[int] = set()
    count = 0
    stop = (nn.Module, pl.Trainer, type, types.ModuleType, types.FunctionType, types.FrameType)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, stop):
            continue
        seen.add(id(item))
        count += isinstance(item, Tensor)
        # an array of a record's may be a view of a tensor, which the garbage collector does not know
        waiting += [item.base] if isinstance(item, np.ndarray) else gc.get_referents(item)
    return count
