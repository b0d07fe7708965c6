"""What is derived arrives on the host as it was, float64 included where it is to be decomposed."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.measurement.derived_stack import DerivedStack, Transfer


def test_deferred_tensors_keep_float64_among_others() -> None:
    stack = DerivedStack({}, {}, [3], rank=1, baseline=None, previous=None)
    values = torch.rand(1, 3, dtype=torch.float64)
    stack.add("entropy", [0], values)
    stack.similarities.append(([0], torch.rand(1, 3, 3)))
    deferred = [
        torch.rand(3, dtype=torch.float32), torch.rand(2, 2, dtype=torch.float64).T, torch.rand(0, 4),
        torch.rand(5, dtype=torch.bfloat16), torch.rand(3, 1, dtype=torch.float64), torch.rand(0).double(),
    ]  # fmt: skip
    arrived: list[Tensor] = []
    stack.deferred.append((deferred[:2], arrived.extend))
    stack.deferred.append((deferred[2:], arrived.extend))
    transfer = Transfer({"": stack})
    assert not stack.deferred  # nothing keeps what lies on the device
    transfer.finish()
    assert torch.equal(stack.values[0][2], values.float().unsqueeze(1))
    assert len(arrived) == len(deferred)
    for got, given in zip(arrived, deferred, strict=True):
        assert got.dtype == (torch.float64 if given.dtype == torch.float64 else torch.float32)
        assert torch.equal(got, given.to(got.dtype))
