"""Checks a pruning plan by silencing its heads, against random heads and importance alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_geo.analysis.pruning import Head, PruningPlan
from lightning_geo.observe import AttentionCall, CallKey, Tap, number_layers
from lightning_geo.observe.heads.head_factors import scaled_heads
from lightning_geo.observe.replay.undisturbed_run import Call, device_of, undisturbed
from lightning_geo.utils.arguments import check_positive, check_type
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.tables import table

__all__ = ["PruningCurve", "Silencer", "evaluate_plan"]

#: ``metric(output, batch)``: a number for each example, [B], or one for the batch.
_Metric = Callable[[Any, Any], Any]


class Silencer:
    """Finds a model's heads by stack, layer and number, and silences them while the model runs.

    Args:
        model: Any model whose attention can be observed.
        call: Its inputs, on its device: one forward pass finds the heads.

    Raises:
        ValueError: If the model computes no attention.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        self._tap = Tap(model)
        counts: dict[CallKey, int] = {}

        def note(key: CallKey, attention: AttentionCall) -> None:
            shown = attention.query if attention.scores is None else attention.scores
            assert shown is not None
            counts[key] = shown.shape[1]

        with undisturbed(model), scaled_heads(self._tap, note):
            call.run(model)
        if not counts:
            raise ArgumentError(
                f"Expected `model` to compute attention but {type(model).__name__} showed none."
            )
        layout = number_layers(counts, self._tap.modules)
        #: attention call -> (stack, layer)
        self.places = layout.layers
        #: stack -> heads of each layer
        self.structure = {stack: [0] * size for stack, size in layout.sizes.items()}
        for key, (stack, layer) in layout.layers.items():
            self.structure[stack][layer] = counts[key]

    def check(self, plan: PruningPlan) -> None:
        """Raise unless the plan fits this model.

        Raises:
            ValueError: If the heads differ.
        """
        if self.structure != plan.structure:
            raise ArgumentError(
                "Expected `plan` to be for this model, but their heads differ: the plan has "
                f"{plan.structure}, the model {self.structure} (stack: heads of each layer). Pass the module "
                "that the monitor observed, not one around it or in it."
            )

    def silenced(self, heads: Iterable[Head]) -> Any:
        """Return a context in which these heads write zeros to their output projection.

        Raises:
            ValueError: If there is no such head.
        """
        gone: dict[tuple[str, int], list[int]] = {}
        for head in heads:
            sizes = self.structure.get(head.stack, [])
            if not (0 <= head.layer < len(sizes) and 0 <= head.head < sizes[head.layer]):
                raise ArgumentError(
                    "Expected `heads` to be heads of this model, which has so many in each layer of a stack: "
                    f"{self.structure}, but got {tuple(head)}. Take them from a plan for this model."
                )
            gone.setdefault((head.stack, head.layer), []).append(head.head)

        def factor(key: CallKey, call: AttentionCall) -> Tensor | None:
            off = gone.get(self.places[key])
            if off is None:
                return None
            assert call.output is not None
            kept = torch.ones(1, call.output.shape[1], device=call.device)
            kept[:, off] = 0.0
            return kept

        return scaled_heads(self._tap, factor)


@dataclass(frozen=True)
class PruningCurve:
    """Quality against heads removed.

    Args:
        removed: [point] number of heads.
        total: Number of heads of the model.
        whole: Quality with all heads.
        plan: [point] quality with the plan's first heads silenced.
        importance: [point] quality with the least important heads silenced, without regard to similarity.
        random: [seed, point] quality with random heads silenced; each seed is one order of heads.
    """

    removed: NDArray[np.int64]
    total: int
    whole: float
    plan: NDArray[np.float64]
    importance: NDArray[np.float64]
    random: NDArray[np.float64]

    def __str__(self) -> str:
        """A table, a line for each number of heads."""
        rows = [("0", "0 %", *[f"{self.whole:.3f}"] * 2, f"{self.whole:.3f}", "")]
        for i, removed in enumerate(self.removed):
            seeds = self.random[:, i]
            rows.append(
                (
                    str(removed),
                    f"{100 * removed / self.total:.0f} %",
                    f"{self.plan[i]:.3f}",
                    f"{self.importance[i]:.3f}",
                    f"{seeds.mean():.3f} ({seeds.min():.3f} to {seeds.max():.3f})",
                    f"{(self.plan[i] > seeds).sum()} of {len(seeds)}",
                )
            )
        header = ("removed", "share", "plan", "importance alone", "random, mean (range)", "plan above random")
        return table(header, rows)


def evaluate_plan(
    model: nn.Module,
    dataloader: Iterable[Any],
    plan: PruningPlan,
    metric: _Metric,
    *,
    removed: Sequence[int] | None = None,
    seeds: int = 10,
) -> PruningCurve:
    """Measure what silencing a plan's heads costs, against random heads and against importance alone.

    A silenced head writes zeros to its output projection. The model runs in eval mode and is left unchanged.
    The data are read once, batch by batch; each batch runs ``seeds + 2`` times for each number of heads.

    Args:
        model: The module that the monitor observed, or one of the same kind.
        dataloader: Batches as the model takes them: a mapping is keyword arguments, a tuple positional ones.
        plan: From :func:`~lightning_geo.pruning_plan`.
        metric: ``metric(output, batch)``: a number for each example, or one for the batch; more is better.
        removed: Numbers of heads to remove; default a quarter, half, three quarters and all of the plan's.
        seeds: Random orders to compare with.

    Raises:
        ValueError: If the plan is for another model, or there are no such numbers of heads or no data.
        LookupError: If the outputs of some heads cannot be changed.
    """
    check_positive("seeds", seeds)
    check_type("model", model, nn.Module, "a torch.nn.Module")
    check_type("plan", plan, PruningPlan, "a PruningPlan, as `pruning_plan` returns it,")
    device = device_of(model)
    batches = (Call((batch,)).to(device).args[0] for batch in dataloader)
    first = next(batches, None)
    if first is None:
        raise ArgumentError("Expected `dataloader` to yield batches, but it is empty.")
    silencer = Silencer(model, Call.from_batch(first))
    silencer.check(plan)
    heads = [ranked.head for ranked in plan.ranking]
    if removed is None:
        removed = sorted({max(1, round(plan.count * quarter / 4)) for quarter in (1, 2, 3, 4)})
    if not removed or not all(0 < n <= len(heads) for n in removed):
        raise ArgumentError(f"Expected `removed` to be numbers from 1 to {len(heads)}, but got {removed}.")
    known = sorted(heads)  # the same random orders whatever the plan
    orders = [heads, plan.by_importance]
    orders += [
        [known[i] for i in np.random.default_rng(seed).permutation(len(known))] for seed in range(seeds)
    ]
    points = [order[:n] for order in orders for n in removed]
    whole, *qualities = _qualities(model, itertools.chain((first,), batches), silencer, [[], *points], metric)
    by_order = np.array(qualities).reshape(len(orders), len(removed))
    return PruningCurve(np.array(removed), len(heads), whole, by_order[0], by_order[1], by_order[2:])


def _qualities(
    model: nn.Module,
    batches: Iterable[Any],
    silencer: Silencer,
    points: Sequence[Sequence[Head]],
    metric: _Metric,
) -> list[float]:
    """Quality with each of several sets of heads silenced; only one batch is held at a time."""
    totals, counts = [0.0] * len(points), [0] * len(points)
    for batch in batches:
        call = Call.from_batch(batch)
        for point, silent in enumerate(points):
            with undisturbed(model), silencer.silenced(silent):
                output = call.run(model)
            values = torch.as_tensor(metric(output, batch), dtype=torch.float64)
            rows = len(next(iter(call.tensors()))) if values.dim() == 0 else values.numel()
            totals[point] += float(values.mean()) * rows
            counts[point] += rows
    return [total / count for total, count in zip(totals, counts, strict=True)]
