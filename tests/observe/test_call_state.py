"""Arguments that a forward changes: every run starts from what the caller gave, and leaves it as it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from lightning_geo import GeometryMonitor, load_history, measure
from lightning_geo.observe.replay.call_state import holds_state
from lightning_geo.observe.replay.undisturbed_run import Call
from lightning_geo.probe.call import ProbeCall
from support.lit import Lit, fit, gpt2
from support.same import assert_same, outcome


class Caching(nn.Module):
    """Attention over what it was given before too, which it keeps in a list or a dictionary of its caller."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.num_heads = nn.Linear(16, 48), 2

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if isinstance(cache, list):
            cache.append((k, v))
            k, v = (torch.cat(parts, 2) for parts in zip(*cache, strict=True))
        elif cache is not None:
            cache["calls"] = cache.get("calls", 0) + 1
            cache["k"] += k
            k = cache["k"]
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def given(kind: type) -> Any:
    """A cache with a graph, as in training."""
    k, v = torch.randn(2, 3, 2, 5, 8, generator=torch.Generator().manual_seed(3), requires_grad=True) * 2
    return [(k, v)] if kind is list else {"k": k}


@pytest.mark.parametrize("kind", [list, dict])
def test_containers_are_as_before_and_every_run_starts_from_them(kind: type) -> None:
    torch.manual_seed(0)
    model, x, cache = nn.Sequential(Caching()), torch.randn(3, 5, 16), given(kind)
    model.forward = lambda x, cache: model[0](x, cache)  # type: ignore[method-assign]
    values = [t.clone() for t in Call((cache,)).tensors()]
    first = measure(model, (x, cache), metrics=["entropy"])["entropy"]
    second = measure(model, (x, cache), metrics=["entropy"])["entropy"]
    np.testing.assert_array_equal(first, second)
    assert len(cache) == 1
    assert all(map(torch.equal, Call((cache,)).tensors(), values))
    q, k, _ = model[0].project(x).detach().double().unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)  # type: ignore[operator,union-attr]
    before = values[0].detach().double()
    k = torch.cat([before, k], 2) if kind is list else before + k
    entropy = torch.special.entr((q @ k.mT / 8**0.5).softmax(-1)).sum(-1).mean((0, 2))
    np.testing.assert_allclose(first[0], entropy, atol=1e-5)


def test_the_same_tensor_stays_the_same() -> None:
    x = torch.ones(2)
    call = Call((x, [x, x]), {"more": {"x": x}}).independent()
    assert call.args[0] is call.args[1][0] is call.args[1][1] is x
    assert call.kwargs["more"]["x"] is x or torch.equal(call.kwargs["more"]["x"], x)


def test_what_cannot_be_copied_is_shared_and_draws_are_not() -> None:
    lock, generator = threading.Lock(), torch.Generator().manual_seed(1)
    call = Call((lock,), {"generator": generator}).independent()
    assert call.args[0] is lock
    before = generator.get_state()
    torch.rand(3, generator=call.kwargs["generator"])
    assert torch.equal(generator.get_state(), before)


def dynamic(model: Any) -> Any:
    return DynamicCache(config=model.config)


def static(model: Any) -> Any:
    return StaticCache(config=model.config, max_cache_len=16)


@pytest.mark.parametrize("make", [dynamic, static])
@pytest.mark.parametrize("filled", [False, True])
def test_a_cache_of_transformers(make: Callable[[Any], Any], filled: bool) -> None:
    torch.manual_seed(0)
    model = gpt2().eval()
    cache, ids = make(model), torch.randint(3, 60, (2, 9))
    with torch.no_grad():
        if filled:
            model(input_ids=ids[:, :4], past_key_values=cache)
    length = int(cache.get_seq_length())
    batch = {"input_ids": ids[:, length:], "past_key_values": cache, "labels": ids[:, length:]}
    record = measure(model, batch, metrics=["entropy", "importance"])
    assert int(cache.get_seq_length()) == length
    again = measure(model, batch, metrics=["entropy", "importance"])
    assert np.isfinite(record["importance"]).all()
    for key in record:
        np.testing.assert_array_equal(record[key], again[key])


def test_a_call_with_a_cache_is_not_divided() -> None:
    """The cache would keep all sequences where the other arguments have one."""
    x = torch.ones(3, 2)
    caches = [DynamicCache(), EncoderDecoderCache(DynamicCache(), DynamicCache())]
    assert all(map(holds_state, caches))
    assert not ProbeCall.of("", Call((x,), {"past_key_values": caches[0]})).divisible
    assert ProbeCall.of("", Call((x, None, 3, "a", [x]), {"more": {"x": x}})).divisible
    assert not any(map(holds_state, [x, nn.ReLU(), F.relu, torch.float32, {"x": [(x, None)]}]))


class Prefixed(Lit):
    """Every call of the model brings a cache, filled by an earlier call without gradient."""

    def __init__(self, *, compiled: bool) -> None:
        super().__init__(lambda: gpt2(dropout=0.0))
        if compiled:
            self.model.compile(backend="eager")

    def loss(self, batch: Any) -> Tensor:
        cache = DynamicCache(config=self.model.config)
        inner: Any = self.model.transformer
        with torch.no_grad():
            inner(input_ids=batch[:, :4], past_key_values=cache, use_cache=True)
        out = self.model(input_ids=batch[:, 4:], past_key_values=cache, labels=batch[:, 4:])
        assert cache.get_seq_length() == 10
        return out.loss  # type: ignore[no-any-return]


def run(directory: Path, compiled: bool, *callbacks: Any) -> dict[str, Any]:
    data: Any = DataLoader(torch.randint(3, 60, (12, 10), generator=torch.Generator().manual_seed(1)), 4)  # type: ignore[arg-type]
    module = Prefixed(compiled=compiled)
    return outcome(fit(directory, module, *callbacks, data=data, steps=2), module)


@pytest.mark.parametrize("compiled", [False, True])
def test_calls_with_a_cache_in_training(compiled: bool, tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", compiled)
    monitor = GeometryMonitor(every_n_steps=1, source="batch", module="model", strict=True)
    assert_same(run(tmp_path / "watched", compiled, monitor), alone)
    found = load_history(tmp_path / "watched" / "lightning_geo" / "version_0")["entropy"]
    torch.manual_seed(0)
    model = gpt2(dropout=0.0, attn_implementation="eager").eval()
    ids = torch.randint(3, 60, (12, 10), generator=torch.Generator().manual_seed(1))[:4]
    with torch.no_grad():
        p = torch.stack(model(input_ids=ids, output_attentions=True).attentions)[:, :, :, 4:].double()
    np.testing.assert_allclose(found[0], torch.special.entr(p).sum(-1).mean((1, 3)), atol=2e-6)


def test_a_probe_of_calls_with_a_cache_is_the_step(tmp_path: Path) -> None:
    """No probe keeps a cache; what the step computes with gradients off is no part of training."""
    alone = run(tmp_path / "alone", False)
    monitor = GeometryMonitor(1, module="model", strict=True, probe_size=4)
    assert_same(run(tmp_path / "probe", False, monitor), alone)
    run(tmp_path / "batch", False, GeometryMonitor(1, source="batch", module="model", strict=True))
    probe, batch = (
        load_history(tmp_path / name / "lightning_geo" / "version_0") for name in ("probe", "batch")
    )
    assert probe.steps.tolist() == [0, 1, 2]
    np.testing.assert_allclose(probe["entropy"][0], batch["entropy"][0], atol=1e-5)


class Opaque(Prefixed):
    """Its step needs its trainer too."""

    def loss(self, batch: Any) -> Tensor:
        assert len(self.trainer.train_dataloader) > 0
        return super().loss(batch)


def test_where_no_call_can_be_replayed_it_is_said_why(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    data: Any = DataLoader(torch.randint(3, 60, (12, 10)), 4)  # type: ignore[arg-type]
    fit(tmp_path, Opaque(compiled=False), GeometryMonitor(1, module="model"), data=data, steps=3)
    said = [str(w.message) for w in recwarn if "GeometryMonitor" in str(w.message)]
    assert any('`source="batch"` is used' in text and "training_step" in text for text in said), said
    assert load_history(tmp_path / "lightning_geo" / "version_0").steps.tolist() == [1, 2]
