"""Which modules are observed."""

import pytest
from torch import nn

from lightning_geo.observe.module_selection import candidates, check_layers, choose
from support.lit import Classifier


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.text = nn.Sequential(nn.Linear(2, 2))
        self.image = nn.Sequential(nn.Linear(2, 2))
        self.loss = nn.CrossEntropyLoss()


def test_children_that_hold_modules_and_the_root_are_candidates():
    assert list(candidates(Towers(), None)) == ["text", "image", ""]


def test_a_named_module_is_the_only_candidate():
    module = Classifier()
    assert candidates(module, "model.bert") == {"": module.model.bert}


def test_an_unknown_name_is_an_error_with_the_nearest():
    with pytest.raises(ValueError, match=r"`module` to name a module .* got 'model.brt'.*model.bert"):
        candidates(Classifier(), "model.brt")


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (["model"], ["model"]),
        (["model", ""], ["model"]),  # the root only passes on to its one child
        (["encoder", "decoder", ""], [""]),  # in the root's forward, one feeds the other
        (["text", "image"], ["text", "image"]),
        ([""], [""]),
    ],
)
def test_choice(observed, expected):
    assert choose(observed) == expected


@pytest.mark.parametrize("layers", [None, 0, [0, 1], r"layer\.1"])
def test_layers_that_fit(layers):
    check_layers(layers, Classifier())


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("decoder", ValueError, "`layers` to match the name of a module but 'decoder' matches none"),
        ([], (TypeError, ValueError), "`layers`"),
        ([-1], (TypeError, ValueError), r"`layers`.*\[-1\]"),
        ([0.5], (TypeError, ValueError), "`layers`"),
    ],
)
def test_layers_that_do_not(layers, error, message):
    with pytest.raises(error, match=message):
        check_layers(layers, Classifier())
