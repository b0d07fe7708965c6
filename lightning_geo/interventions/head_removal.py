"""Applies a pruning plan: silences the heads in a copy of the model, or cuts them out."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.analysis.pruning import Head, PruningPlan
from lightning_geo.interventions.ablation import Silencer
from lightning_geo.observe import AttentionCall, CallKey, Tap
from lightning_geo.observe.heads.head_factors import scaled_heads
from lightning_geo.observe.replay.undisturbed_run import Call, device_of, undisturbed
from lightning_geo.utils._transformers import is_conv1d
from lightning_geo.utils.arguments import check_type
from lightning_geo.utils.errors import ArgumentError

__all__ = ["PrunedModel", "apply_plan"]

#: Names of the query, key and value projections, by family; a fused projection cannot be cut here.
_PROJECTIONS = (
    ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "k", "v"),
)  # fmt: skip
#: Attributes of attention modules that hold the number of heads, and their total width.
_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
_WIDTHS = ("all_head_size", "inner_dim")


@dataclass(frozen=True)
class PrunedModel:
    """A model without a plan's heads, and what that saves.

    Args:
        model: A copy without the plan's heads.
        heads: The removed heads.
        parameters: Number of parameters before and after.
        seconds: Time of a forward pass on the given batch before and after; medians over alternating passes.
    """

    model: nn.Module
    heads: tuple[Head, ...]
    parameters: tuple[int, int]
    seconds: tuple[float, float]

    def __str__(self) -> str:
        """Return the savings as one line."""
        (before, after), (slow, fast) = self.parameters, self.seconds
        return (
            f"{len(self.heads)} heads removed: {before:,} to {after:,} parameters "
            f"({after / before - 1:+.1%}), {1e3 * slow:.1f} to {1e3 * fast:.1f} ms per forward pass "
            f"({fast / slow - 1:+.1%})"
        )


def apply_plan(
    model: nn.Module, plan: PruningPlan, batch: Any, *, shrink: bool = False, repeats: int = 5
) -> PrunedModel:
    """Return a copy of a model without a plan's heads.

    Their columns of the output projection become zero, so that an ordinary checkpoint holds the result. With
    ``shrink`` their queries, keys and values are cut out too, which makes the model smaller and faster; this
    needs a family with three separate linear layers for them (BERT, DistilBERT, ViT, BART, …). In both cases
    the copy is returned only if its output equals that of the model with the same heads silenced.

    A layer that loses all its heads keeps one, silenced, because attention without heads is undefined. A
    shrunk model has layers of different widths, which no ``config.json`` can describe: save it with
    ``torch.save``.

    Args:
        model: The module that the monitor observed, or one of the same kind.
        plan: From :func:`~lightning_geo.pruning_plan`.
        batch: What the model takes: a mapping is keyword arguments, a tuple positional ones.
        shrink: Whether to cut the heads out instead of zeroing them.
        repeats: Number of forward passes to time.

    Raises:
        ValueError: If the plan is for another model, or the family does not allow it.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    check_type("plan", plan, PruningPlan, "a PruningPlan, as `pruning_plan` returns it,")
    call = Call.from_batch(batch).to(device_of(model))
    silencer = Silencer(model, call)
    silencer.check(plan)
    with undisturbed(model), silencer.silenced(plan.heads):
        expected = _tensors(call.run(model))
    pruned = copy.deepcopy(model)
    gone: dict[CallKey, list[int]] = {key: [] for key in silencer.places}
    for key, (stack, layer) in silencer.places.items():
        gone[key] = sorted(h.head for h in plan.heads if (h.stack, h.layer) == (stack, layer))
    places = _output_projections(pruned, call, [key for key, heads in gone.items() if heads])
    for key, place in places.items():
        place.zero(gone[key])
        if shrink:
            _shrink(place, gone[key])
    try:
        with undisturbed(pruned):
            actual = _tensors(call.run(pruned))
        same = len(actual) == len(expected) and all(map(_close, actual, expected))
    except (RuntimeError, ValueError) as error:
        raise ArgumentError(_REFUSED.format(type(model).__name__, "fails to run")) from error
    if not same:
        raise ArgumentError(_REFUSED.format(type(model).__name__, "computes something else"))
    sizes = tuple(sum(p.numel() for p in m.parameters()) for m in (model, pruned))
    return PrunedModel(pruned, plan.heads, (sizes[0], sizes[1]), _times((model, pruned), call, repeats))


_REFUSED = (
    "Expected a `model` from which heads can be removed, but {} {} without them (it may share weights, or "
    "store the number of heads elsewhere too). Silence them instead: `shrink=False`, or `evaluate_plan`."
)


@dataclass(frozen=True)
class _Place:
    """The attention of one layer: its module, its output projection, and its heads."""

    module: nn.Module
    projection: nn.Module
    heads: int
    size: int

    @property
    def transposed(self) -> bool:
        """Whether the weight is [in, out], as GPT-2's ``Conv1D`` has it."""
        return is_conv1d(self.projection)

    def zero(self, heads: Sequence[int]) -> None:
        """Zero the columns of these heads."""
        with torch.no_grad():
            weight = self.projection.weight
            assert isinstance(weight, Tensor)
            columns = weight.T if self.transposed else weight
            columns.unflatten(1, (self.heads, self.size))[:, list(heads)] = 0.0


def _output_projections(model: nn.Module, call: Call, keys: Iterable[CallKey]) -> dict[CallKey, _Place]:
    """Find the linear layer that reads each attention's heads, by its input rather than by its name."""
    tap = Tap(model)
    merged: dict[CallKey, Tensor] = {}
    shapes: dict[CallKey, tuple[int, int]] = {}
    projections: dict[CallKey, nn.Module] = {}

    def note(key: CallKey, attention: AttentionCall) -> None:
        module = tap.modules[key.module]
        if attention.output is not None:
            shapes[key] = attention.output.shape[1], attention.output.shape[3]
            merged[key] = attention.output.transpose(1, 2).flatten(2).flatten(0, 1)
        if isinstance(module, nn.MultiheadAttention):
            projections[key] = module.out_proj

    def compare(module: nn.Module, args: tuple[Any, ...]) -> None:
        given = next((x for x in args if isinstance(x, Tensor)), None)
        for key, heads in list(merged.items()):
            if given is None or given.numel() != heads.numel() or given.shape[-1] != heads.shape[-1]:
                continue
            if torch.equal(given.reshape(heads.shape), heads):
                projections.setdefault(key, module)
                del merged[key]

    linear = [m for m in model.modules() if isinstance(m, nn.Linear) or is_conv1d(m)]
    handles = [m.register_forward_pre_hook(compare) for m in linear]
    try:
        with undisturbed(model), scaled_heads(tap, note):
            call.run(model)
    finally:
        for handle in handles:
            handle.remove()
    places = {}
    for key in keys:
        if key not in projections:
            raise ArgumentError(
                f"Expected a `model` whose heads go unchanged into a linear output projection, but none was "
                f"found for {tap.name_of(key.module)!r}. Silence its heads instead: `evaluate_plan`."
            )
        places[key] = _Place(tap.modules[key.module], projections[key], *shapes[key])
    if len({id(place.projection) for place in places.values()}) < len(places):
        raise ArgumentError(
            f"Expected a `model` whose layers have weights of their own, but {type(model).__name__} shares "
            "weights between layers. Silence its heads instead: `evaluate_plan`."
        )
    return places


def _shrink(place: _Place, gone: Sequence[int]) -> None:
    """Cut heads out of one layer; if all are to go, one stays, silenced."""
    kept = [head for head in range(place.heads) if head not in gone] or [0]
    names = next((n for n in _PROJECTIONS if all(hasattr(place.module, name) for name in n)), None)
    width = place.heads * place.size
    projections = [] if names is None else [getattr(place.module, name) for name in names]
    if not projections or not all(isinstance(p, nn.Linear) and p.out_features == width for p in projections):
        raise ArgumentError(
            f"Expected a `model` with separate query, key and value projections, but "
            f"{type(place.module).__name__} has none that can be cut. Call `apply_plan` without `shrink`."
        )
    rows = torch.cat([torch.arange(h * place.size, (h + 1) * place.size) for h in kept])
    for projection in projections:
        _cut(projection, rows, 0)
    if not isinstance(place.projection, nn.Linear):
        raise ArgumentError(
            f"Expected a `model` whose output projections are torch.nn.Linear, but that of "
            f"{type(place.module).__name__} is {place.projection}, which cannot be cut. Call `apply_plan` "
            "without `shrink`."
        )
    _cut(place.projection, rows, 1)
    for names_, before, after in ((_COUNTS, place.heads, len(kept)), (_WIDTHS, width, len(rows))):
        for name in names_:
            if getattr(place.module, name, None) == before:
                setattr(place.module, name, after)


def _cut(linear: nn.Linear, kept: Tensor, axis: int) -> None:
    """Keep these output (0) or input (1) features."""
    with torch.no_grad():
        kept = kept.to(linear.weight.device)
        weight = linear.weight.index_select(axis, kept).contiguous()
        linear.weight = nn.Parameter(weight, linear.weight.requires_grad)
        if axis == 0 and linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias[kept].clone(), linear.bias.requires_grad)
    linear.out_features, linear.in_features = weight.shape


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors that a model returned."""
    values = tuple(output.values()) if hasattr(output, "values") else output
    return [x for x in Call((values,)).tensors() if x.is_floating_point()]


def _close(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().max()) if other.numel() else 0.0
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else 3e-2
    return one.shape == other.shape and torch.allclose(one, other, tolerance, tolerance * scale, True)


def _times(models: tuple[nn.Module, nn.Module], call: Call, repeats: int) -> tuple[float, float]:
    """Median seconds of a forward pass of each model, alternating, so that a busy machine slows both."""
    taken: tuple[list[float], list[float]] = [], []
    for _ in range(repeats + 1):
        for model, seconds in zip(models, taken, strict=True):
            seconds.append(_time(call.independent(), model))
    first, second = (sorted(seconds[1:])[repeats // 2] for seconds in taken)
    return first, second


def _time(call: Call, model: nn.Module) -> float:
    device = device_of(model)
    with undisturbed(model):
        started = time.perf_counter()
        model(*call.args, **call.kwargs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started
