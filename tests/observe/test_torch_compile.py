"""Compiled attention functions are found where models hold them, and run eagerly for a while."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from lightning_geo.observe.replay.torch_compile import as_compiled, compiles_attention, eagerly
from support.lit import bert


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def double(x: Tensor) -> Tensor:
    return 2 * x


def attribute(function: Any) -> nn.Module:
    model = Plain()
    model.function = function
    return model


def of_class(function: Any) -> nn.Module:
    kind = type("Kind", (Plain,), {"function": staticmethod(function), "attend": function})
    kind.__module__ = "torchless"
    return kind()


def in_file(function: Any) -> nn.Module:
    file = types.ModuleType("file_of_a_model")
    vars(file)["function"] = function
    sys.modules[file.__name__] = file
    kind = type("Kind", (nn.Module,), {"forward": Plain.forward, "__module__": file.__name__})
    return kind()


@pytest.fixture(autouse=True)
def _forget_the_file() -> Any:
    yield
    sys.modules.pop("file_of_a_model", None)


@pytest.mark.parametrize("hold", [attribute, of_class, in_file])
@pytest.mark.parametrize(("function", "attends"), [(flex_attention, True), (attend, True), (double, False)])
def test_compiled_attention_is_found(
    hold: Callable[[Any], nn.Module], function: Callable[..., Any], attends: bool
) -> None:
    assert not compiles_attention(nn.Sequential(hold(function)))
    assert not compiles_attention(nn.Sequential(hold(torch.compiler.disable(function))))
    assert compiles_attention(nn.Sequential(hold(torch.compile(function, backend="eager")))) is attends


def test_models_of_transformers_hold_none() -> None:
    assert not compiles_attention(bert())


def test_looking_runs_no_code_of_what_a_model_holds() -> None:
    class Lazy:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    assert not compiles_attention(attribute(Lazy()))


def test_eagerly_and_back() -> None:
    compilations = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(graph)
        return graph

    function = torch.compile(double, backend=backend)
    with eagerly():
        function(torch.ones(2))
        assert compilations == []
        with eagerly(), as_compiled():
            function(torch.ones(2))
        assert len(compilations) == 1
        with pytest.raises(ValueError, match="inside"), as_compiled():
            raise ValueError("inside")
        assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    assert torch._dynamo.eval_frame._stance.stance == "default"
    with as_compiled():
        assert torch._dynamo.eval_frame._stance.stance == "default"
