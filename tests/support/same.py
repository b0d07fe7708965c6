"""What a run leaves: all that training made, what was recorded, and what should not be there any more."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from lightning_geo import load_history
from lightning_geo.observe.replay.call_hooks import _HookedCall
from lightning_geo.storage.record import GeometryRecord


def attention_lookup() -> Any:
    """The function by which models of transformers find their attention; another one in transformers 4."""
    return getattr(AttentionInterface, "get_interface", AttentionInterface.__getitem__)


LOOKUP = attention_lookup()


def outcome(runner: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """All that training made: weights, buffers, optimizer state, losses, generators, mode flags."""
    python, legacy = random.getstate(), np.random.get_state()
    result = {f"state/{name}": value for name, value in module.state_dict().items()}
    result |= {f"grad/{name}": p.grad for name, p in module.named_parameters()}
    for index, optimizer in enumerate(runner.optimizers):
        for parameter, state in optimizer.state_dict()["state"].items():
            result |= {f"optimizer/{index}/{parameter}/{key}": value for key, value in state.items()}
    result |= {f"loss/{index}": loss for index, loss in enumerate(module.losses)}
    result |= {f"training/{name}": m.training for name, m in module.named_modules()}
    result |= {f"buffers/{name}": sorted(m._buffers.keys()) for name, m in module.named_modules()}
    result |= {"torch": torch.get_rng_state(), "python": python, "numpy": repr(legacy)}
    return result


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Equal bit for bit."""
    assert list(ours) == list(theirs)
    for name, mine in ours.items():
        other = theirs[name]
        if isinstance(mine, Tensor):
            torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True, msg=f"{name} differs")
        else:
            assert mine == other, name


def traces(module: nn.Module) -> list[str]:
    """Hooks, wrappers and switches that somebody left behind in a model or in this process."""
    found = [
        f"{name}.{kind}"
        for name, part in module.named_modules()
        for kind, value in vars(part).items()
        if "_hooks" in kind and isinstance(value, dict) and value
    ]
    parts = module.named_modules()
    found += [f"{n}: compiled call" for n, m in parts if isinstance(m._compiled_call_impl, _HookedCall)]
    if attention_lookup() is not LOOKUP:
        found.append("the lookup of attention functions")
    if not torch.backends.mha.get_fastpath_enabled():
        found.append("the fast path is off")
    if torch._C._len_torch_function_stack():
        found.append("a torch function mode")
    if torch.get_default_dtype() is not torch.float32 or not torch.is_grad_enabled():
        found.append("default type or gradient mode")
    if torch._dynamo.eval_frame._stance.stance != "default":
        found.append("the compiler's stance")
    return found


def records(directory: Path, name: str | None = None) -> list[GeometryRecord]:
    """What a run without a logger recorded."""
    history = load_history(directory / "lightning_geo" / "version_0", name)
    return [history.record(index) for index in range(len(history))]


def steps_in(directory: Path) -> list[int]:
    """The steps of the samples in a record."""
    return load_history(directory).steps.tolist()


def assert_same_records(ours: list[GeometryRecord], theirs: list[GeometryRecord]) -> None:
    """Equal to the last bit but for the clock."""
    assert [r.step for r in ours] == [r.step for r in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.probe_fingerprint, mine.model) == (other.probe_fingerprint, other.model)
        assert mine.keys() == other.keys()
        for key in mine.keys():  # noqa: SIM118 (a record is no mapping)
            np.testing.assert_array_equal(mine[key], other[key], err_msg=key)
