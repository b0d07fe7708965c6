"""The compiled tile against the oracle, and what happens where nothing can be compiled."""

from __future__ import annotations

import pytest
import torch

from kernels.cases import CASES, problem_of, with_rows
from kernels.comparison import as_arrays, assert_agree, assert_float32
from lightning_geo.functional import attention_statistics
from lightning_geo.kernels import compiled as module
from lightning_geo.kernels.compiled import compiled, unsupported
from lightning_geo.kernels.reference import reference

pytestmark = pytest.mark.slow  # compiling takes half a minute


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_oracle(name, chosen):
    problem = problem_of(CASES[name]())
    problem = with_rows(problem) if chosen else problem
    assert unsupported("attention", problem) is None
    got = compiled(problem, 150)
    assert_float32(got)
    assert_agree(got, as_arrays(reference(problem)))


def test_falls_back_and_says_so_where_there_is_no_compiler(monkeypatch, caplog):
    def fails():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(module, "_tile", fails)
    module._no_compiler.cache_clear()
    query = torch.randn(1, 2, 5, 4)
    try:
        with caplog.at_level("WARNING", "lightning_geo.kernels"):
            for _ in range(2):
                got = attention_statistics(query, query, backend="compiled")
    finally:
        module._no_compiler.cache_clear()
    assert torch.equal(got.entropy, attention_statistics(query, query, backend="chunked").entropy)
    assert caplog.text.count("No working C++ compiler found") == 1
    assert 'backend="compiled" falls back to "chunked"' in caplog.text
