"""Arguments of a monitor that cannot be right, or do not fit the model, are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_geo import GeometryMonitor
from lightning_geo.probe import user_probe
from lightning_geo.probe.probe import copied
from support.lit import Classifier, loader, trainer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["entropi"]}, r"`metrics` .* got 'entropi'\. Did you mean 'entropy'"),
        ({"metrics": []}, "`metrics` to name at least one"),
        ({"every_n_steps": 0}, "`every_n_steps` to be an integer of at least 1 but got 0"),
        ({"every_n_steps": 2.5}, "`every_n_steps` .* got 2.5"),
        ({"every_n_steps": 5, "schedule": bool}, "either `every_n_steps` or `schedule` but got both"),
        ({"schedule": 5}, "`schedule` to be a callable .* got int"),
        ({"source": "train"}, r"`source` to be one of \('probe', 'batch'\) but got 'train'"),
        ({"scalars": "all"}, "`scalars` to be one of .* got 'all'"),
        ({"rank": 0}, "`rank` to be an integer of at least 1 but got 0"),
        ({"probe_size": -1}, "`probe_size` to be an integer of at least 1 but got -1"),
        ({"name": "a/b"}, "`name` to be made of letters.* got 'a/b'"),
        ({"special_token_ids": "[SEP]"}, r"`special_token_ids` to be a list of token ids but got '\[SEP\]'"),
        ({"special_token_ids": 5}, "`special_token_ids` to be a list of token ids but got 5"),
        ({"source": "batch", "probe": torch.ones(2)}, '`probe` only with `source="probe"`'),
        ({"source": "batch", "baseline": "runs"}, '`baseline` only with `source="probe"`'),
        ({"source": "batch", "loss_fn": print}, '`loss_fn` only with `source="probe"`'),
        ({"source": "batch", "metrics": "drift"}, "`metrics` to name more than `drift` and `velocity` with"),
        ({"weights_every_n_samples": 1.5}, "`weights_every_n_samples` to be an integer of at least 1"),
        ({"importance_every_n_samples": 0}, "`importance_every_n_samples` to be an integer of at least 1"),
        (
            {"metrics": "entropy", "baseline": "runs"},
            "`metrics` to include `drift` where `baseline` is given",
        ),
    ],
)
def test_arguments_that_cannot_be_right(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        GeometryMonitor(**arguments)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"module": "modle"},
        "`module` to name a module of Classifier but got 'modle'. Nearest names: .'model'",
    ),
    ({"layers": 2}, r"`layers` to match at least one layer but got 2\. Layers per stack: .*2"),
    ({"layers": [7, 9]}, r"`layers` to match at least one layer but got \[7, 9\]"),
    ({"layers": "decoder"}, "`layers` to match the name of a module but 'decoder' matches none"),
    ({"layers": "intermediate"}, "`layers` to match at least one layer but got 'intermediate'"),
    ({"layers": "layer.(1"}, r"`layers` to be a regular expression but 'layer.\(1' is none"),
    ({"layers": 0.5}, "`layers` to be a pattern or layer indices .* got 0.5"),
    ({"baseline": "nowhere"}, "`baseline` to be the directory of a run but .*'nowhere' does not exist"),
    (
        {"probe": {"pixels": torch.ones(2, 3)}},
        "`probe` to be inputs that the observed model takes .* 'pixels'",
    ),
    ({"probe": [object()]}, "`probe` to be a batch or a dataloader but .*object cannot be kept"),
]


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (source, arguments, message)
        for source in ("probe", "batch")
        for arguments, message in REFUSED
        if source == "probe" or not {"baseline", "probe"} & set(arguments)  # refused above
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_the_first_step(
    source: Any, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    runner, module = trainer(tmp_path, GeometryMonitor(source=source, **arguments)), Classifier()
    with pytest.raises((ValueError, TypeError), match=message):
        runner.fit(module, loader())
    assert runner.global_step == 0


def test_a_given_probe_on_which_the_package_fails_costs_the_samples_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(user_probe, "Share", lambda calls: copied(object()))
    batch = next(iter(loader()))
    runner = trainer(tmp_path, GeometryMonitor(1, probe=batch, special_token_ids=[1]), steps=2)
    with pytest.warns(
        UserWarning, match="the given probe cannot be used: RuntimeError: ArgumentTypeError: an argu"
    ):
        runner.fit(Classifier(), loader())
    assert runner.global_step == 2
