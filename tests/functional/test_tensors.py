"""What all functions promise, whatever they compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo import functional as F
from lightning_geo.functional import masked_mean


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    keep=st.sampled_from([0.0, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_masked_mean_is_the_mean_of_what_is_left(seed, shape, keep, dtype):
    rng = np.random.default_rng(seed)
    dim = int(rng.integers(-len(shape), len(shape)))
    values, mask = torch.tensor(rng.normal(size=shape)).to(dtype), torch.tensor(rng.random(shape) < keep)
    values[~mask] = float(rng.choice([np.nan, np.inf]))
    got = masked_mean(values, mask, dim)
    exact = np.ma.masked_array(values.double().numpy(), ~mask.numpy()).mean(dim)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(got, np.ma.filled(exact, np.nan), atol=1e-6)


def test_masked_mean_shares_a_mask_of_size_one_and_shows_what_is_broken():
    values = torch.tensor([[[1.0, 2.0], [3.0, torch.nan]]])
    assert masked_mean(values, torch.tensor([[[True, False]]])).tolist() == [[1.0, 3.0]]
    by_row = masked_mean(values, torch.tensor([[[True], [False]]]))
    assert by_row[0, 0] == 1.5
    assert by_row[0, 1].isnan()
    assert masked_mean(values).isnan().tolist() == [[False, True]]
    with pytest.raises(ValueError, match=r"`mask` to have shape \[1, 2, 2\].*but got \[1, 2\]"):
        masked_mean(values, torch.ones(1, 2).bool())


GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(2, 2, 9, 6, generator=GENERATOR)
MASK = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
U, V = torch.linalg.qr(torch.randn(2, 3, 6, 2, generator=GENERATOR)).Q
OUTPUTS = torch.randn(30, 12, generator=GENERATOR)
HEADS = (OUTPUTS.T @ OUTPUTS).reshape(4, 3, 4, 3)
SPECTRUM = torch.tensor([[3.0, 2.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])

CASES = {
    "masked_mean": (X[..., 0], MASK),
    "cone_index": (X, MASK),
    "mean_cosine": (X, MASK),
    "token_norm": (X, MASK),
    "skewness": (X, MASK),
    "kurtosis": (X, MASK),
    "update_ratio": (X, Y, MASK),
    "normalized_entropy": (torch.tensor([0.5, 0.0]), torch.tensor([4, 2])),
    "key_entropy": (X.abs().mT, MASK),
    "effective_rank": (SPECTRUM,),
    "participation_ratio": (SPECTRUM,),
    "stable_rank": (SPECTRUM,),
    "top_share": (SPECTRUM,),
    "principal_subspace": (X.mT @ X, 2),
    "principal_angles": (U, V),
    "projection_similarity": (U, V),
    "subspace_distance": (U, V),
    "qk_cosine": (X[:, None], Y[:, None], MASK, MASK),
    "linear_cka": (X, Y),
    "head_similarity": (HEADS,),
    "redundancy": (HEADS,),
    "complementarity": (HEADS,),
    "head_importance": (X,),
}


def outputs(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_every_public_function_is_held_to_the_promises():
    elsewhere = {
        "METRIC_FUNCTIONS", "AttentionStatistics", "HeadMoments", "HeadReads", "HeadWeights",
        "StreamStatistics", "attention_statistics", "computes", "gate_labels", "head_moments",
        "metric_function", "projection_strength", "stream_statistics", "von_neumann_entropy",
    }  # fmt: skip
    assert set(CASES) == set(F.__all__) - elsewhere


@pytest.mark.parametrize("name", CASES)
def test_arguments_are_left_alone(name):
    arguments = CASES[name]
    copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    outputs(getattr(F, name)(*arguments))
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(arguments, copies, strict=True)
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [name for name, arguments in CASES.items() if arguments[-1] is MASK])
def test_what_is_masked_has_no_influence(name, bad):
    function, arguments = getattr(F, name), CASES[name]
    tokens = {"masked_mean": MASK, "key_entropy": MASK[:, None, :], "qk_cosine": MASK[:, None, :, None]}
    shape = tokens.get(name, MASK[..., None])
    poisoned = [torch.where(shape, a, bad) if a is not MASK else a for a in arguments]
    assert torch.equal(function(*poisoned), function(*arguments))
    without_mask = [a for a in poisoned if a is not MASK]
    assert not torch.equal(function(*without_mask), function(*arguments))


@pytest.mark.parametrize("name", CASES)
def test_autocast_changes_nothing(name):
    function, arguments = getattr(F, name), CASES[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = outputs(function(*arguments))
    for a, b in zip(inside, outputs(function(*arguments)), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_upcast_first(name, dtype):
    function = getattr(F, name)
    half = [a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in CASES[name]]
    wide = [a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in half]
    for a, b in zip(outputs(function(*half)), outputs(function(*wide)), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_right_and_finite_at_zeros(name):
    arguments = [
        a.double().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in CASES[name]
    ]
    function = getattr(F, name)
    if name != "principal_subspace":  # a basis has no gradient where eigenvalues are equal
        total = sum(o.sum() for o in outputs(function(*arguments)))
        gradients = torch.autograd.grad(
            total, [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
        )
        assert all(g.isfinite().all() for g in gradients)
    smooth = [
        (a.detach() + 0.05).requires_grad_() if isinstance(a, torch.Tensor) and a.requires_grad else a
        for a in arguments
    ]
    checked = (lambda s, r: function((s + s.mT) / 2, r)[0]) if name == "principal_subspace" else function
    assert torch.autograd.gradcheck(checked, smooth)


def test_zeros_have_finite_gradients():
    tokens = torch.zeros(3, 4, requires_grad=True)
    for function in (F.cone_index, F.mean_cosine, F.token_norm):
        (gradient,) = torch.autograd.grad(function(tokens), tokens)
        assert gradient.isfinite().all()
    one = torch.zeros(2, 1, requires_grad=True)  # attention on one visible key: not defined, like 0/0
    for values in (F.normalized_entropy(one, torch.ones(2, 1)), F.key_entropy(one + 1), F.key_entropy(one)):
        assert values.isnan().all()
        (gradient,) = torch.autograd.grad(values.sum(), one)
        assert gradient.isfinite().all()
    u = torch.eye(4)[:, :2].requires_grad_()
    (gradient,) = torch.autograd.grad(F.subspace_distance(u, u.detach()), u)
    assert gradient.isfinite().all()
