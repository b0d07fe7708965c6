"""Two runs side by side: how they are aligned, what is said to differ, and when they cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_geo import GeometryHistory, GeometryRecord
from lightning_geo.analysis.comparison import compare
from lightning_geo.analysis.subspaces import subspace_distance
from lightning_geo.functional import subspace
from lightning_geo.utils.errors import RunError
from support.records import make_record


def run(values: dict[int, list[list[float]]], metric: str = "entropy", **metadata: object) -> GeometryHistory:
    """A run of one metric: [layer][head] by step."""
    return GeometryHistory(
        [
            GeometryRecord({"encoder": {metric: np.array(of, np.float32)}}, step=step, **metadata)
            for step, of in values.items()
        ]
    )


# -- alignment


def test_runs_of_another_length_are_compared_where_both_still_are() -> None:
    short = run({0: [[1.0]], 10: [[2.0]]})
    long = run({0: [[1.0]], 10: [[5.0]], 20: [[9.0]]})
    found = compare(short, long)
    assert found.steps == (10, 10)
    assert found.differences[0].difference.item() == 3.0
    assert any("end at different steps: A at 10, B at 20" in note for note in found.notes)


def test_the_step_asked_for_is_the_nearest_sample() -> None:
    a, b = (run({step: [[rate * step]] for step in (0, 10, 20)}) for rate in (1.0, 2.0))
    assert compare(a, b, step=10).differences[0].difference.item() == 10
    found = compare(a, b, step=13)
    assert found.steps == (10, 10)
    assert found.notes == ("Not both runs have a sample at step 13; compared at step 10, the nearest.",)


# -- differences


def test_differences_are_b_minus_a_in_units_of_how_much_the_metric_moves() -> None:
    a = run({0: [[1.0, 1.0]], 10: [[2.0, 1.0]]})  # moves by 1 and 0
    b = run({0: [[1.0, 1.0]], 10: [[1.0, 4.0]]})  # moves by 0 and 3
    (row, other) = compare(a, b).rows()
    assert (row.layer, row.head, row.a, row.b, row.difference) == (0, 1, 1.0, 4.0, 3.0)
    assert (row.moved_a, row.moved_b) == (0.0, 3.0)
    assert row.relative == pytest.approx(3 / np.sqrt((1 + 0 + 0 + 9) / 4))
    assert other.difference == -1.0
    assert compare(a, b).by_layer() == [("", 0, pytest.approx(np.sqrt((9 + 1) / 2 / 2.5)))]


def test_movement_is_counted_up_to_the_compared_step() -> None:
    a, b = (run({0: [[0.0]], 10: [[1.0]], 20: [[100.0]]}) for _ in range(2))
    (row,) = compare(a, b, step=10).rows()
    assert row.moved_a == row.moved_b == 1.0


def test_a_run_equals_itself() -> None:
    history = GeometryHistory([make_record(step) for step in (0, 50)])
    found = compare(history, history)
    assert len(found.differences) == len(history.keys())
    assert {row.difference for row in found.rows()} == {row.relative for row in found.rows()} == {0.0}
    assert found.largest("entropy") == found.largest("effective_rank") == 0.0


def test_a_metric_that_did_not_move_but_differs_is_infinitely_far() -> None:
    (row,) = compare(run({0: [[1.0]]}), run({0: [[2.0]]})).rows()
    assert row.relative == np.inf


def test_of_each_metric_the_largest_is_shown_and_three_of_a_family() -> None:
    a, b = (GeometryHistory([make_record(s, seed=seed) for s in (0, 50)]) for seed in (1, 2))
    found = compare(a, b)
    rows = found.telling(100)
    families = [next(d.spec.family for d in found.differences if d.metric == row.metric) for row in rows]
    assert max(map(families.count, families)) == 3
    assert len({row.metric for row in rows}) == len(rows)
    for row in rows:
        assert abs(row.relative) == max(abs(r.relative) for r in found.rows() if r.metric == row.metric)


def test_a_value_that_one_run_alone_has_passes_no_limit() -> None:
    a, b = run({0: [[1.0, 2.0]]}), run({0: [[1.0, np.nan]]})
    found = compare(a, b)
    assert [row.head for row in found.rows()] == [0]
    assert found.largest("entropy") == np.inf
    with pytest.raises(
        RunError, match="limit on 'attention_distance': no layer or head has a value in both runs"
    ):
        found.largest("attention_distance")


def test_a_limit_is_on_one_metric_and_not_on_its_family() -> None:
    a, b = (GeometryHistory([make_record(0, metrics=["entropy", "max_logit"], seed=s)]) for s in (1, 2))
    difference = float(np.abs(a["entropy"].astype(np.float64) - b["entropy"].astype(np.float64)).max())
    assert compare(a, b).largest("entropy") == compare(a, b).largest("metric:entropy") == difference
    assert compare(a, b).largest("max_logit") != difference
    with pytest.raises(RunError, match="pattern"):
        compare(a, b).largest("pattern")


def test_metrics_are_chosen_as_in_the_monitor() -> None:
    a, b = (GeometryHistory([make_record(0, seed=seed)]) for seed in (1, 2))
    names = {d.metric for d in compare(a, b, ["metric:entropy", "drift"]).differences}
    assert names == {"entropy", "drift.query", "drift.key", "drift.value", "drift.output"}
    with pytest.raises(RunError, match="Did you mean 'entropy'"):
        compare(a, b, ["entropie"])
    with pytest.raises(
        RunError, match=r"None of attention_distance has values in both runs\. Both have: entropy"
    ):
        compare(run({0: [[1.0]]}), run({0: [[1.0]]}), ["attention_distance"])


# -- the same inputs, the same model


@pytest.mark.parametrize(
    ("prints", "expected"), [(("x", "x"), "same"), (("x", "y"), "different"), (("x", ""), "batches")]
)
def test_the_probe_is_compared(prints: tuple[str, str], expected: str) -> None:
    a, b = (run({0: [[1.0]]}, probe_fingerprint=probe) for probe in prints)
    assert compare(a, b).probe == expected


@pytest.mark.parametrize("size", [{"layers": 3}, {"heads": 4}, {"stacks": ("encoder", "decoder")}])
def test_another_model_is_refused(size: dict[str, object]) -> None:
    a, b = GeometryHistory([make_record(0)]), GeometryHistory([make_record(0, **size)])  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"different models.*encoder: 2 layers × 3 heads.*Tiny"):
        compare(a, b)


def test_the_same_model_within_another_module_is_the_same() -> None:
    a, b = (GeometryHistory([make_record(0, stacks=[s], metrics=["entropy"])]) for s in ("x", "y.x"))
    assert [d.metric for d in compare(a, b).differences] == ["entropy"]


def test_stacks_are_told_apart() -> None:
    a, b = (
        GeometryHistory(
            [make_record(s, stacks=["enc", "dec"], metrics=["entropy"], seed=seed) for s in (0, 9)]
        )
        for seed in (1, 2)
    )
    assert [d.metric for d in compare(a, b).differences] == ["enc/entropy", "dec/entropy"]
    assert {stack for stack, _, _ in compare(a, b).by_layer()} == {"enc", "dec"}


# -- subspaces


@pytest.mark.parametrize("kept", [1, 3, 8])
def test_the_distance_of_subspaces_is_that_of_functional(kept: int) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(2, 5, 16, kept, generator=generator, dtype=torch.float64))[0]
    theirs = subspace.subspace_distance(u, v).numpy()
    np.testing.assert_allclose(subspace_distance(u.numpy(), v.numpy()), theirs, atol=1e-12)
    np.testing.assert_allclose(subspace_distance(u.numpy(), u.numpy()), 0, atol=1e-7)


def test_subspaces_are_compared_where_both_runs_kept_them() -> None:
    generator = np.random.default_rng(0)
    bases = np.linalg.qr(generator.normal(size=(4, 2, 3, 8, 2)))[0].astype(np.float32)
    runs = []
    for first, last in ((0, 1), (0, 2)):
        records = [make_record(step, metrics=["entropy"]) for step in (0, 50, 100)]
        records[0].matrices = {"encoder": {"basis.query": bases[first]}}
        records[2].matrices = {"encoder": {"basis.query": bases[last], "head_similarity": bases[0]}}
        runs.append(GeometryHistory(records))
    start, end = compare(*runs).subspaces
    assert (start.role, start.steps, end.steps) == ("query", (0, 0), (100, 100))
    assert start.distance.max() < 1e-3
    np.testing.assert_allclose(end.distance, subspace_distance(bases[1], bases[2]))
    assert compare(runs[0], GeometryHistory([make_record(0, metrics=["entropy"])])).subspaces == ()
