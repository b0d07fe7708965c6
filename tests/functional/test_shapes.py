"""Shapes in signatures are checked in the tests of this room, and cost users nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

from lightning_geo.functional import mean_cosine
from lightning_geo.functional._tensors import shannon_entropy
from lightning_geo.kernels import AttentionProblem
from lightning_geo.kernels.vectors import sum_directions

ROOT = Path(__file__).parents[2]


def test_a_wrong_shape_is_refused():
    """None of these functions checks what it is given here: the signature does."""
    x = torch.randn(2, 3, 4)
    with pytest.raises(jaxtyping.TypeCheckError, match="'norm'"):
        sum_directions(x, x.norm(dim=-1)[:, :2], None)
    with pytest.raises(jaxtyping.TypeCheckError, match="'p'"):
        shannon_entropy(torch.tensor(1.0))


def test_a_wrong_field_is_refused():
    query = torch.randn(2, 4, 5, 8)
    AttentionProblem(query, query[:, :2], 1.0)
    with pytest.raises(jaxtyping.TypeCheckError, match="'key'"):
        AttentionProblem(query, query[..., :7], 1.0)


@pytest.mark.wrong_arguments
def test_the_marker_leaves_the_message_to_the_function():
    with pytest.raises(ValueError, match=r"`x` to have shape"):
        mean_cosine(torch.ones(3))


def test_users_load_neither_jaxtyping_nor_beartype():
    program = """if True:
        import sys, typing
        from torch import Tensor
        import lightning_geo.functional as functional
        assert not {"jaxtyping", "beartype"} & set(sys.modules)
        hints = typing.get_type_hints(functional.mean_cosine)
        assert hints["return"] is Tensor, hints
    """
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
