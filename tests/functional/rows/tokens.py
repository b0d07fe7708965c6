"""Rows of what is computed of tokens ``[..., n, d]``, some of which are not real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from functional import definitions
from functional.row import Arguments, Array, Draw, Row
from lightning_geo import functional as F
from lightning_geo.functional.cone import sum_of_directions
from lightning_geo.metrics.registry import metric_function, reads_of

TABLE: dict[str, Row] = {}


def tokens(draw: Draw) -> Arguments:
    n, d = draw.size(4 if draw.clean else 0, 9), draw.size(3, 8)
    x, mask = draw.tokens(n, d), draw.mask(n)
    return draw.poisoned(x, mask[..., None]), mask


def blocks(draw: Draw) -> Arguments:
    """A block's output and input."""
    x, mask = tokens(draw)
    return x, draw.poisoned(draw.tokens(*x.shape[-2:]), mask[..., None]), mask


def values(draw: Draw) -> Arguments:
    """One feature."""
    x, mask = tokens(draw)
    return x[..., 0], mask


def real(definition: Callable[..., Any]) -> Callable[..., Any]:
    """A definition of real tokens as one of tokens and their mask, the last argument."""
    return lambda *arguments: definition(*(x[arguments[-1]] for x in arguments[:-1]))


def in_order(draw: Draw, *arguments: Tensor) -> Arguments:
    order = draw.order(arguments[-1].shape[-1])
    return (*(x[..., order, :] for x in arguments[:-1]), arguments[-1][..., order])


def turned(draw: Draw, x: Tensor, mask: Tensor) -> Arguments:
    return x @ draw.rotation(x.shape[-1]), mask


def of_other_lengths(draw: Draw, x: Tensor, mask: Tensor) -> Arguments:
    return x * 10 ** torch.tensor(draw.rng.uniform(-6, 6, (*x.shape[:-1], 1))), mask


def shifted(draw: Draw, x: Tensor, mask: Tensor) -> Arguments:
    return x * 10 ** draw.rng.uniform(-2, 2) + draw.rng.uniform(-5, 5), mask


NOBODY = (torch.ones(2, 3, 4), torch.zeros(2, 3).bool())
NONE = (torch.ones(2, 0, 4), torch.zeros(2, 0).bool())
ONE = (torch.ones(2, 3, 4), torch.tensor([[True, False, False]]).expand(2, 3))
ZEROS = (
    (torch.zeros(2, 3, 4), torch.ones(2, 3).bool()),
    (torch.eye(4)[:3].repeat(2, 1, 1).tril(-1), torch.ones(2, 3).bool()),
)
EQUAL = (torch.full((2, 3, 769), 0.1), torch.ones(2, 3).bool())  # 769: the mean of equal numbers is rounded


def of_tokens(
    function: Callable[..., Tensor], definition: Callable[..., Any], *, alone: bool = True, **options: Any
) -> Row:
    """A function of tokens and their mask; ``alone``: whether one token has a value."""
    undefined = (NOBODY, NONE) if alone else (NOBODY, NONE, ONE)
    options = {"draw": tokens, "masks": (1,), "undefined": undefined, "zeros": ZEROS, **options}
    return Row(function, reference=real(definition), **options)


def of_directions(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A metric of the sum of directions."""
    return lambda x, mask: metric_function(name)(*sum_of_directions(x, mask))


CONE = {"order": in_order, "rotation": turned, "lengths": of_other_lengths}
SHAPE = {"order": in_order, "scale and offset": shifted}
TABLE |= {
    "masked_mean": Row(
        F.masked_mean, values, real(definitions.mean), masks=(1,),
        undefined=((torch.ones(2, 3), torch.zeros(2, 3).bool()), (torch.ones(2, 0), torch.ones(2, 0).bool())),
    ),
    "cone_index": of_tokens(F.cone_index, definitions.cone_index, unchanged=CONE),
    "mean_cosine": of_tokens(F.mean_cosine, definitions.mean_cosine, unchanged=CONE, alone=False),
    "cone": of_tokens(
        lambda x, mask: F.cone_index(x, mask, normalized=True), definitions.cone, unchanged=CONE
    ),
    "cone.head": of_tokens(of_directions("cone.head"), definitions.cone),
    "cone_index.head": of_tokens(of_directions("cone_index.head"), definitions.cone_index),
    "mean_cosine.head": of_tokens(of_directions("mean_cosine.head"), definitions.mean_cosine, alone=False),
    "token_norm": of_tokens(
        F.token_norm, definitions.token_norm, unchanged={"order": in_order, "rotation": turned}
    ),
    "skewness": of_tokens(
        F.skewness, definitions.skewness, undefined=(NOBODY, NONE, EQUAL),
        unchanged=SHAPE | {"sign": lambda draw, x, mask: ((-x, mask), torch.neg)},
    ),
    "kurtosis": of_tokens(
        F.kurtosis, definitions.kurtosis, undefined=(NOBODY, NONE, EQUAL),
        unchanged=SHAPE | {"sign": lambda draw, x, mask: (-x, mask)},
    ),
    "update_ratio": of_tokens(
        F.update_ratio, definitions.update_ratio, draw=blocks, masks=(2,), zeros=((ONE[0], *ONE),),
        undefined=((NOBODY[0], *NOBODY), (NONE[0], *NONE), (ONE[0], 0 * ONE[0], ONE[1])),
        unchanged={"order": in_order, "scale": lambda draw, x, before, mask: (3 * x, 3 * before, mask)},
    ),
}  # fmt: skip


def of_stream(name: str, definition: Callable[..., Any]) -> Row:
    """A metric of tokens; the definition is of one token and of what it was."""

    def function(x: Tensor, before: Tensor, mask: Tensor) -> Tensor:
        statistics = F.stream_statistics(x, mask, before)
        return metric_function(name)(*(getattr(statistics, field) for field in reads_of(name)))

    def reference(x: Array, before: Array, mask: Array) -> Array:
        pairs = zip(x[:, None], before[:, None], mask, strict=True)
        return np.array([definition(now, then) if valid else np.nan for now, then, valid in pairs])

    return Row(
        function, blocks, reference, axes=1, masks=(2,), gradient=False, broken=(0,),
        undefined=((NOBODY[0], *NOBODY),),
    )  # fmt: skip


TABLE |= {
    "hidden_norm": of_stream("hidden_norm", lambda x, before: definitions.token_norm(x)),
    "skewness, of a stream": of_stream("skewness", lambda x, before: definitions.skewness(x)),
    "kurtosis, of a stream": of_stream("kurtosis", lambda x, before: definitions.kurtosis(x)),
    "update_ratio, of a stream": of_stream("update_ratio", definitions.update_ratio),
}
