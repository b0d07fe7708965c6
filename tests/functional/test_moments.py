from __future__ import annotations

import pytest
import torch

from lightning_geo.functional import qk_cosine


def test_cosines_are_not_taken_beyond_one_by_rounding():
    x = torch.randn(500, 1, 1, 17, generator=torch.Generator().manual_seed(0)).expand(500, 1, 33, 17)
    assert qk_cosine(x, 3 * x).max() == 1
    assert qk_cosine(x, -3 * x).min() == -1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: qk_cosine(torch.ones(3, 5, 2), torch.ones(2, 5, 2)),
            ValueError,
            "multiple of the number of key heads but got 3 and 2",
        ),
        (
            lambda: qk_cosine(torch.ones(3, 5, 2), torch.ones(3, 5, 1)),
            ValueError,
            r"agree in D.*\[3, 5, 2\] and \[3, 5, 1\]",
        ),
        (lambda: qk_cosine(torch.ones(2, 3, 5, 2), torch.ones(3, 5, 2)), ValueError, "agree in D"),
        (
            lambda: qk_cosine(torch.ones(3, 3, 5, 2), torch.ones(3, 3, 5, 2), torch.ones(3, 3, 5).bool()),
            ValueError,
            "`query_mask`",
        ),
        (
            lambda: qk_cosine(torch.ones(2, 3, 5, 2), torch.ones(2, 3, 5, 2), None, torch.ones(2, 5)),
            TypeError,
            "`key_mask`",
        ),
    ],
)
@pytest.mark.wrong_arguments
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
