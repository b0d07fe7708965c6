"""The oracle against a second, independent one."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.calls import problem_of, with_rows
from kernels.cases import CASES
from kernels.comparison import as_arrays
from kernels.naive import naive
from lightning_geo.kernels.reference import reference


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_rows_in_numpy(name):
    arguments = CASES[name]()
    got = as_arrays(reference(problem_of(arguments)))
    expected = naive(arguments)
    assert got.keys() == expected.keys()
    for field, value in expected.items():
        np.testing.assert_allclose(got[field], value, rtol=1e-9, atol=1e-12, err_msg=field)


@pytest.mark.parametrize("name", CASES)
def test_chosen_rows_are_those_of_the_whole(name):
    arguments = CASES[name]()
    problem = with_rows(problem_of(arguments))
    whole, part = naive(arguments), as_arrays(reference(problem))
    index = problem.rows.numpy()[:, None]
    for field in part.keys() - {"received"}:
        np.testing.assert_allclose(
            part[field], np.take_along_axis(whole[field], index, 2), rtol=1e-9, atol=1e-12, err_msg=field
        )
    # the rows in numpy are all of them: what keys receive from some is known by its sum
    live = part["live"] & np.isfinite(part["logsumexp"])
    broken = (part["live"] & ~live).any(-1)
    expected = np.where(broken, np.nan, live.sum(-1))
    np.testing.assert_allclose(part["received"].sum(-1), expected, rtol=1e-9)


def test_the_table_reaches_every_field():
    """A field that is NaN, zero or absent in all cases would be compared without being tested."""
    informative: set[str] = set()
    for build in CASES.values():
        for field, value in as_arrays(reference(problem_of(build()))).items():
            values = value[np.isfinite(value)].astype(float)
            if len(np.unique(values)) > 5 or field == "live":
                informative.add(field)
    assert informative == set(naive(CASES["sinks"]() | {"special": CASES["special_tokens"]()["special"]}))
