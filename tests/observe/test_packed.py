"""Packed rows measure what their documents measure alone, under every way that attention is computed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lightning_geo import measure
from support.packed_models import (
    FIRST,
    LENGTHS,
    apart,
    assert_same,
    build,
    documents,
    flash_without_gpu,
    flattened,
    numbers_of,
    padded,
    positions_of,
)

SPECIAL = [FIRST]
FAMILIES = ("entropy", "pattern", "cone", "subspace", "stream", "head")
#: With metrics of few sequences, and those of what projections read: only where weights are seen.
EVERYTHING = [*FAMILIES, "weights", "projection", "gates", "score_spectra"]


@pytest.fixture(autouse=True)
def _flash() -> Iterator[None]:
    with flash_without_gpu():
        yield


@pytest.mark.parametrize(
    ("implementation", "lengths"),
    [
        (how, lengths)
        for how in ("sdpa", "flash_attention_2")
        for lengths in (LENGTHS, (4, 4, 4), (1, 1, 9), (9, 1, 1))
    ]
    + [("eager", LENGTHS)],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_flattened_rows_are_their_documents(name: str, implementation: str, lengths: tuple[int, ...]) -> None:
    given, single = documents(lengths), implementation == "eager"
    alone = measure(build(name, single=single), padded(given), special_token_ids=SPECIAL)
    packed = measure(build(name, implementation, single=single), flattened(given), special_token_ids=SPECIAL)
    assert_same(packed, alone)
    assert "special_mass" in packed


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_flex_attention(name: str) -> None:
    """A ``BlockMask`` is a rule; so are those of its documents, windows included."""
    given = documents()
    alone = measure(build(name, single=True), padded(given), special_token_ids=SPECIAL)
    model = build(name, "flex_attention", single=True)
    assert_same(measure(model, flattened(given), special_token_ids=SPECIAL), alone)


@pytest.mark.parametrize("name", ["llama", "mistral", "modernbert"])
def test_flash_takes_the_lengths_that_it_is_given(name: str) -> None:
    """Without position ids in the attention function's arguments, as in ModernBERT, there is nothing else."""
    given = documents()
    batch = flattened(given, lengths=True)
    alone = measure(build(name), padded(given), special_token_ids=SPECIAL)
    packed = measure(build(name, "flash_attention_2"), batch, special_token_ids=SPECIAL)
    assert_same(packed, alone)


def test_lengths_go_before_position_ids_under_flash() -> None:
    """Rotary positions go on, and the kernel starts again all the same."""
    given = documents((5, 4))
    batch = flattened(given, lengths=True)
    batch["position_ids"] = torch.arange(9)[None]
    model = build("llama", "flash_attention_2")
    packed = measure(model, batch, metrics="entropy")
    assert_same(packed, measure(build("llama"), padded(given), metrics="entropy"))  # rotation is relative


@pytest.mark.parametrize("metrics", [EVERYTHING])
def test_what_few_sequences_or_projections_tell_is_of_documents_too(metrics: list[str]) -> None:
    given = documents((12, 3, 7, 1))
    alone = measure(build("llama"), padded(given), metrics=metrics, special_token_ids=SPECIAL)
    packed = measure(build("llama"), flattened(given), metrics=metrics, special_token_ids=SPECIAL)
    assert_same(packed, alone)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_attention_2"])
def test_naive_packing_is_one_sequence(implementation: str) -> None:
    """Position ids start again but nothing hides the other documents: transformers' own warning."""
    given = documents()
    model = build("llama", implementation)
    batch = flattened(given)
    naive = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    if implementation != "flash_attention_2":  # flash reads position ids whatever the mask was
        hidden = {**batch, "attention_mask": torch.full((1, 1, 29, 29), -1e30, dtype=torch.float64).triu(1)}
        assert_same(measure(model, naive), measure(model, hidden))
        assert measure(model, naive)["entropy"].mean() > measure(model, batch)["entropy"].mean() + 0.05
    else:
        assert_same(measure(model, naive), measure(model, batch))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_beside_documents(implementation: str, fill: int, left: bool) -> None:
    """Two rows with a block mask of their own: padded tokens have any position, and belong to no document."""
    rows = ((7, 1, 12), (3, 5, 1))
    numbers = torch.cat([numbers_of(row, 20, left) for row in rows])
    real = numbers > 0
    ids, positions = torch.zeros(2, 20, dtype=torch.long), torch.full((2, 20), fill)
    given = documents(sum(rows, ()))
    ids[real], positions[real] = torch.cat(given), torch.cat([positions_of(row)[0] for row in rows])
    mask = torch.zeros(2, 1, 20, 20, dtype=torch.float64).masked_fill(~apart(numbers), -1e30)
    batch = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    alone = measure(build("llama"), padded(given), special_token_ids=SPECIAL)
    assert_same(measure(build("llama", implementation), batch, special_token_ids=SPECIAL), alone)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_attention_2"])
def test_one_document_a_row_is_not_packed(implementation: str) -> None:
    """Positions of left-padded rows start again where padding ends, and no document does."""
    given = documents((7, 12, 3))
    batch = padded(given)
    ids, mask = batch["input_ids"].flip(1), batch["attention_mask"].flip(1)
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    left = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    single = implementation == "eager"
    alone = measure(build("llama", single=single), padded([x.flip(0) for x in given]))
    assert_same(measure(build("llama", implementation, single=single), left), alone)
