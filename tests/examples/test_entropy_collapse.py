"""The entropy example: the table and the picture come out of the runs' own files."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from lightning_geo import load_history

pytestmark = pytest.mark.slow


def test_collapse_shows_at_once(run, tmp_path):
    printed = run("entropy_collapse.py", "--learning-rates", 1e-3, 3e-2, "--max-steps", 20, "--length", 32)
    rows = re.findall(r"^([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+)$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["0.001", "0.03"]
    for rate, lowest, *_ in rows:
        history = load_history(tmp_path / "entropy_collapse" / f"lr_{rate}" / "version_0")
        assert history.steps.tolist() == [0, 5, 10, 15, 20]
        assert history.keys() == ["normalized_entropy"]
        assert float(lowest) == round(float(np.min(history["normalized_entropy"][-1])), 3)
    assert float(rows[0][1]) > 0.9 > 0.3 > float(rows[1][1])
    with Image.open(tmp_path / "entropy_collapse.png") as picture:
        assert picture.width > 1000
