"""Records of the same run by different numbers of processes."""

from __future__ import annotations

import numpy as np

from lightning_geo import GeometryRecord


def assert_same(one: GeometryRecord, other: GeometryRecord, tolerance: float) -> None:
    """Compare two records number by number."""
    for field in ("step", "epoch", "batches_seen", "probe_fingerprint", "model"):
        assert getattr(one, field) == getattr(other, field)
    names = one.keys()
    assert other.keys() == names
    for key in names:
        # the angle between subspaces that hardly differ is the root of a small difference
        slack = 5 if key.rpartition("/")[2].startswith(("drift", "velocity")) else 1
        if key.rpartition("/")[2] in ("bf16_share", "unchanged_share") and tolerance:
            slack = 100  # a sum of gradients that rounds otherwise moves a few of thousands of weights
        pair = other[key], one[key]
        if key.rpartition("/")[2].startswith("padding_visible"):  # a sequence alone is not padded
            pair = np.nan_to_num(pair[0]), np.nan_to_num(pair[1])
        np.testing.assert_allclose(*pair, tolerance, slack * tolerance, err_msg=key)


def assert_same_patterns(one: GeometryRecord, other: GeometryRecord) -> None:
    """Compare the attention patterns of two records."""
    assert one.patterns.keys() == other.patterns.keys()
    for stack, patterns in one.patterns.items():
        theirs = other.patterns[stack]
        assert theirs.tokens == patterns.tokens
        assert (theirs.lengths == patterns.lengths).all()
        apart = theirs.codes.astype(int) - patterns.codes  # a rounding of float32 may cross that to bytes
        assert np.abs(apart).max() <= 1
