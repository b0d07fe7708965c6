"""What the graph of a loss tells of how it was averaged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_geo.utils._torch import of_mean

LABELS = torch.tensor([1, -100, 0, 2, -100, 1])

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "a mean": lambda x: F.cross_entropy(x, LABELS),
    "a sum divided by a tensor": lambda x: F.cross_entropy(x, LABELS, reduction="sum") / torch.tensor(10),
    "a sum divided by a number": lambda x: F.cross_entropy(x, LABELS, reduction="sum") / 10,
    "weights": lambda x: (
        F.cross_entropy(x, LABELS, torch.tensor([1.0, 2.0, 5.0]), reduction="sum") / torch.tensor(10)
    ),
}
#: The mean over targets, in its own words.
MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "weights": lambda x: F.cross_entropy(x, LABELS, torch.tensor([1.0, 2.0, 5.0]))
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_over_its_share_is_the_mean(name: str) -> None:
    x = torch.randn(6, 3, requires_grad=True)
    loss, mean = LOSSES[name](x), MEANS.get(name, LOSSES["a mean"])(x)
    share = of_mean(loss)
    assert share is not None
    torch.testing.assert_close(loss / share, mean)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: F.cross_entropy(x, LABELS) * 2,
        lambda x: F.cross_entropy(x, LABELS) / 2,
        lambda x: F.cross_entropy(x, LABELS, reduction="sum"),
        lambda x: x.sum() / 10,
        lambda x: x.sum().detach(),
        lambda x: F.cross_entropy(x.bfloat16(), LABELS, reduction="sum") / 10,
    ],
)
def test_of_other_losses_nothing_is_known(loss: Callable[[Tensor], Tensor]) -> None:
    assert of_mean(loss(torch.randn(6, 3, requires_grad=True))) is None
