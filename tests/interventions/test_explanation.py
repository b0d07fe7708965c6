"""Explanations against full autograd, zeroed weights, eager attention and numpy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightning_geo import explain, measure
from lightning_geo.analysis.pruning import Head
from lightning_geo.cli.main import main
from lightning_geo.functional import gate_labels
from lightning_geo.interventions.head_geometry import GEOMETRY
from lightning_geo.metrics.gates import GATES, MIXED
from lightning_geo.report.explanation_page import explanation_page
from support.lit import bert, sequences
from support.report_page import Page
from support.same import traces

LAYERS, HEADS, WIDTH = 2, 4, 8


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return bert(dropout=0.3, initializer_range=0.4, num_labels=3).train()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    rows = default_collate(sequences(4))
    return {name: rows[name] for name in ("input_ids", "attention_mask")}


def output_weight(model: nn.Module, layer: int) -> nn.Parameter:
    return model.bert.encoder.layer[layer].attention.output.dense.weight  # type: ignore[no-any-return]


def logits(model: nn.Module, batch: dict[str, Tensor], row: int) -> Tensor:
    return model.eval()(**{k: v[row : row + 1] for k, v in batch.items()}).logits[0]  # type: ignore[no-any-return]


def test_contributions_are_those_of_full_autograd(model: nn.Module, batch: dict[str, Tensor]) -> None:
    found = explain(model, batch, [0, 1, 2, 0], [1, 2, 0, 2])
    assert model.training
    assert traces(model) == []
    assert all(p.grad is None for p in model.parameters())
    for row, explanation in enumerate(found):
        model.zero_grad()
        values = logits(model, batch, row)
        margin = values[explanation.target] - values[explanation.contrast]
        margin.backward()
        assert explanation.margin == pytest.approx(float(margin), rel=1e-4)
        assert explanation.predicted == int(values.argmax())
        for layer in range(LAYERS):
            weight = output_weight(model, layer)
            theirs = (weight * weight.grad).detach().unflatten(1, (HEADS, WIDTH)).sum((0, 2))
            ours = explanation.contributions["bert.encoder"][layer]
            np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=1e-6 * float(theirs.abs().max()))


def test_the_error_is_what_silencing_the_layer_really_costs(
    model: nn.Module, batch: dict[str, Tensor]
) -> None:
    [explanation] = explain(model, {k: v[:1] for k, v in batch.items()}, 0, 1)
    with torch.no_grad():
        for layer in range(LAYERS):
            kept = output_weight(model, layer).clone()
            output_weight(model, layer).zero_()
            values = logits(model, batch, 0)
            output_weight(model, layer).copy_(kept)
            lost = explanation.margin - float(values[0] - values[1])
            contributed = explanation.contributions["bert.encoder"][layer].sum()
            assert explanation.errors["bert.encoder"][layer] == pytest.approx(lost - contributed, abs=1e-4)


def test_where_first_order_fails_heads_are_really_silenced(
    model: nn.Module, batch: dict[str, Tensor]
) -> None:
    failed = kept = 0
    for row, explanation in enumerate(explain(model, batch, [0, 1, 2, 0], [1, 2, 0, 2])):
        [contributions], [effects] = explanation.contributions.values(), explanation.effects.values()
        for layer in range(LAYERS):
            lost = explanation.margin - margin_without(model, batch, row, explanation, layer, range(HEADS))
            trusted = abs(lost - contributions[layer].sum()) <= 0.5 * abs(lost)
            for head in range(HEADS):
                silent = explanation.was_silenced(Head("bert.encoder", layer, head))
                assert silent != trusted
                really = explanation.margin - margin_without(model, batch, row, explanation, layer, [head])
                expected = contributions[layer, head] if trusted else really
                assert effects[layer, head] == pytest.approx(expected, abs=1e-4)
                failed, kept = failed + silent, kept + trusted
    assert failed
    assert kept  # both ways are tried


def margin_without(
    model: nn.Module, batch: dict[str, Tensor], row: int, explanation: Any, layer: int, heads: Iterable[int]
) -> float:
    """The margin with the heads' columns of the output projection zeroed, and nothing of this package."""
    weight = output_weight(model, layer)
    whole = weight.detach().clone()
    with torch.no_grad():
        for head in heads:
            weight[:, head * WIDTH : (head + 1) * WIDTH] = 0
        values = logits(model, batch, row)
        weight.copy_(whole)
    return float(values[explanation.target] - values[explanation.contrast])


def test_contrast_is_the_strongest_other_class(model: nn.Module, batch: dict[str, Tensor]) -> None:
    for row, explanation in enumerate(explain(model, batch, 1)):
        values = logits(model, batch, row)
        assert explanation.contrast == (0 if values[0] > values[2] else 2)


def test_what_a_head_looks_at_is_the_attention_that_keys_receive(batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = bert(dropout=0.0, initializer_range=0.4, attn_implementation="eager")
    for row, explanation in enumerate(explain(model, batch, 0)):
        one = {k: v[row : row + 1] for k, v in batch.items()}
        valid = one["attention_mask"][0].bool()
        with torch.no_grad():
            attentions = model.eval()(**one, output_attentions=True).attentions
        for layer, p in enumerate(attentions):
            theirs = p[0][:, valid].mean(1)
            ours = explanation.attended["bert.encoder"][layer]
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert explanation.input_ids == tuple(one["input_ids"][0].tolist())


def test_gates_are_those_of_measuring_the_example_alone(model: nn.Module, batch: dict[str, Tensor]) -> None:
    special = [int(batch["input_ids"][1, 0])]
    explanation = explain(model, batch, 0, special_token_ids=special)[1]
    record = measure(
        model, {k: v[1:2] for k, v in batch.items()}, metrics="metric:gate", special_token_ids=special
    )
    margins = np.stack([record[f"gate.{gate}"] for gate in GATES])
    labels = gate_labels(torch.from_numpy(margins))
    [names], [found] = explanation.gates.values(), explanation.gate_margins.values()
    assert names.tolist() == [[(*GATES, MIXED)[label] for label in row] for row in labels.tolist()]
    np.testing.assert_allclose(found, margins.max(0), atol=1e-6)
    page = explanation_page([explanation])
    [(worst, _)] = explanation.blamed(1)
    shown = f"{names[worst.layer, worst.head]} ({found[worst.layer, worst.head]:.2f})".replace("-", "−")
    assert f"<td>{shown}</td>" in page


def test_bad_token_ids_are_refused(model: nn.Module, batch: dict[str, Tensor]) -> None:
    with pytest.raises(TypeError, match="special_token_ids"):
        explain(model, batch, 0, special_token_ids="[CLS]")  # type: ignore[arg-type]


def test_unusual_is_a_z_score_against_correct_examples(model: nn.Module, batch: dict[str, Tensor]) -> None:
    rows = default_collate(sequences(12, seed=5))
    model.eval()
    with torch.no_grad():
        right = (model(**rows).logits.argmax(-1) == rows["labels"]).nonzero().flatten().tolist()
    assert 3 <= len(right) < 12
    reference = [{k: v[i : i + 5] for k, v in rows.items()} for i in range(0, 12, 5)]
    explanation = explain(model, batch, 0, reference=reference)[2]
    assert explanation.references == len(right)
    geometry = [measure(model, {k: v[i : i + 1] for k, v in rows.items()}, metrics=GEOMETRY) for i in right]
    mine = measure(model, {k: v[2:3] for k, v in batch.items()}, metrics=GEOMETRY)
    for name in GEOMETRY:
        known = np.stack([record[name] for record in geometry]).astype(np.float64)
        theirs = (mine[name] - known.mean(0)) / known.std(0, ddof=1)
        np.testing.assert_allclose(explanation.unusual["bert.encoder"][name], theirs, rtol=1e-6, atol=1e-6)


def test_without_enough_correct_examples_nothing_is_unusual(
    model: nn.Module, batch: dict[str, Tensor]
) -> None:
    assert explain(model, batch, 0)[0].unusual == {}
    one = {**{k: v[:1] for k, v in batch.items()}, "labels": logits(model, batch, 0).argmax()[None]}
    explanation = explain(model, batch, 0, reference=[one])[0]
    assert (explanation.references, explanation.unusual) == (1, {})


def test_blamed_are_the_most_negative(model: nn.Module, batch: dict[str, Tensor]) -> None:
    explanation = explain(model, batch, 0)[0]
    values = np.sort(explanation.effects["bert.encoder"].ravel())
    assert [value for _, value in explanation.blamed(3)] == values[values < 0][:3].tolist()
    assert [value for _, value in explanation.supporting(3)] == values[values > 0][::-1][:3].tolist()
    for head, value in explanation.blamed(2):
        assert explanation.effects[head.stack][head.layer, head.head] == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 3}, "`target` to be a class from 0 to 2, but got 3"),
        ({"target": 0, "contrast": -1}, "`contrast` to be a class from 0 to 2, but got -1"),
        ({"target": 1, "contrast": 1}, "`contrast` to be another class than `target`, but both are 1"),
        ({"target": [1, 2]}, "`target` to be one class, or one for each of 4 examples, but got 2"),
        ({"target": 0, "reference": [{"input_ids": 1}]}, "mappings with `labels`"),
    ],
)
def test_what_cannot_be_explained(
    arguments: dict[str, Any], message: str, model: nn.Module, batch: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        explain(model, batch, **arguments)


def test_what_is_no_classifier(model: nn.Module, batch: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="`model` to return logits"):
        explain(model.bert, batch, 0)


def test_the_page_escapes_what_it_shows(model: nn.Module, batch: dict[str, Tensor]) -> None:
    names = ("<b>good</b>", "bad", "ugly")
    tokens = ("<script>alert(1)</script>",) * 10
    found = [replace(one, tokens=tokens, classes=names) for one in explain(model, batch, 0)]
    page = explanation_page(found)
    assert "<script" not in found[0]._repr_html_()
    assert len(found[0]._repr_html_()) < 40_000
    assert "<b>" not in found[0]._repr_html_()
    assert repr(found[0]).startswith("Explanation(<b>good</b>: margin ")
    assert "<script" not in page
    assert "<b>good" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<section>") == 4
    assert "does not prove" in page
    for head, _ in found[0].blamed(1):
        assert f"<td>{head.layer}</td><td>{head.head}</td>" in page


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import BertTokenizerFast

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "news", "today"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    # transformers 5 names it `vocab`, 4 `vocab_file`: the first argument of both
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    bert(dropout=0.0, initializer_range=0.4, id2label={0: "poor", 1: "fine"}).save_pretrained(
        tmp_path / "model"
    )
    (tmp_path / "known.tsv").write_text("0\tgood news\n1\tbad news\n0\tgood today\n1\tbad today\n")
    page = tmp_path / "page.html"
    command = [
        "explain",
        str(tmp_path / "model"),
        "--text",
        "good news today",
        "--text",
        "bad",
        "--target",
        "1",
    ]
    assert main([*command, "--reference", str(tmp_path / "known.tsv"), "-o", str(page)]) == 0
    assert "page.html" in capsys.readouterr().out
    text = " ".join(Page(page.read_text(encoding="utf-8")).text.split())
    assert "[CLS] good news today [SEP] The heads" in text  # without padding
    assert "[CLS] bad [SEP] The heads" in text
    assert "against fine" in text
    named = [*command[:-1], "fine", "-o", str(page)]
    assert main(named) == 0
    assert " ".join(Page(page.read_text(encoding="utf-8")).text.split()).startswith(text[:400])
    capsys.readouterr()
    for bad, message in (
        (["explain", str(tmp_path), "--text", "x", "--target", "1"], "Cannot load a text classifier"),
        (["explain", str(tmp_path / "no"), "--text", "x", "--target", "1"], "is not a directory"),
        ([*command[:-1], "7", "-o", str(page)], "`target` to be a class from 0 to 1, but got 7"),
        ([*command[:-1], "fin", "-o", str(page)], "no class 'fin'. Did you mean 'fine'"),
        ([*command, "--reference", str(page)], "as lines of class index, tab and text"),
    ):
        assert main(bad) == 2
        assert message in capsys.readouterr().err
