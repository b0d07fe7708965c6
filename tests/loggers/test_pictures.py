"""Pictures are checked pixel by pixel: is each cell the colour of its value, and is all of it on the page?"""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from lightning_geo.loggers.picture_scale import PictureScale
from lightning_geo.loggers.pictures import PictureSchedule, draw, pictures, png
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import select, spec_of
from lightning_geo.utils.colours import sequential_colours
from support.records import make_record

PAGE = (350, 215)  # the size at which both of TensorBoard's tabs show a picture unscaled
LEFT, TOP = 44, 40


def pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """RGB, after a round trip through the file."""
    return np.asarray(Image.open(io.BytesIO(png(picture))).convert("RGB"))


def cells(picture: Image.Image, rows: int, cols: int) -> NDArray[np.uint8]:
    """The colour in the middle of each cell, by the sizes that the layout promises."""
    wide, tall = min(232 // cols, 58), min(142 // rows, 58)
    y = TOP + tall * np.arange(rows) + tall // 2
    x = LEFT + wide * np.arange(cols) + wide // 2
    return pixels(picture)[np.ix_(y, x)]


def luminance(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIE lightness, 0 to 100."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


def test_colours_rise_evenly_in_lightness() -> None:
    # so that more is lighter in grey, too, and for every kind of colour blindness
    # every eighth: next to each other they differ by no more than eight bits can say
    rises = np.diff(luminance(sequential_colours()[::8]))
    assert rises.min() > 0.7 * rises.mean()
    assert rises.max() < 1.3 * rises.mean()


@given(st.integers(1, 71), st.integers(1, 116), st.integers(0, 9))
def test_each_cell_has_the_colour_of_its_value(rows: int, cols: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((rows, cols), np.float32)
    picture = draw(values, CATALOG["self_mass"], "self_mass", 50)
    assert picture.size == PAGE
    expected = sequential_colours()[(values.astype(np.float64) * 239).round().astype(int)]
    np.testing.assert_array_equal(cells(picture, rows, cols), expected)


@pytest.mark.parametrize("shape", [(80, 64), (126, 128), (96, 4), (2, 200)])
def test_larger_models_get_a_larger_page(shape: tuple[int, int]) -> None:
    picture = draw(np.zeros(shape, np.float32), CATALOG["self_mass"], "self_mass", 50)
    assert picture.width >= max(350, LEFT + shape[1])
    assert picture.height >= max(215, TOP + shape[0])


def test_what_is_absent_is_hatched_grey() -> None:
    values = np.full((4, 6), 0.5, np.float32)
    values[1], values[3, 2:] = np.nan, np.inf
    picture = draw(values, CATALOG["self_mass"], "self_mass", 0)
    field = pixels(picture)[TOP : TOP + 4 * 35, LEFT : LEFT + 6 * 38].reshape(4, 35, 6, 38, 3)
    for row in range(4):
        for col in range(6):
            cell = field[row, :, col].reshape(-1, 3)
            grey = (cell == cell[:, :1]).all()
            assert grey == (not np.isfinite(values[row, col]))
            assert (np.ptp(cell) > 0) == grey or not grey  # stripes, no colour of the map


def test_a_metric_with_both_bounds_keeps_its_range() -> None:
    low = draw(np.full((2, 2), 0.2, np.float32), CATALOG["self_mass"], "", 0)
    for values in ([[0.2, 0.9], [0.0, 1.0]], [[0.2, 0.21], [0.19, 0.2]]):
        picture = draw(np.array(values, np.float32), CATALOG["self_mass"], "", 0)
        np.testing.assert_array_equal(cells(picture, 2, 2)[0, 0], cells(low, 2, 2)[0, 0])


def test_a_metric_without_them_spans_a_scale() -> None:
    values = np.array([[3.0, 4.0], [5.0, 7.0]], np.float32)
    picture = draw(values, CATALOG["max_logit"], "", 0, scale=PictureScale(3.0, 7.0))
    found = cells(picture, 2, 2)
    np.testing.assert_array_equal(found[0, 0], sequential_colours()[0])
    np.testing.assert_array_equal(found[1, 1], sequential_colours()[-1])
    np.testing.assert_array_equal(found[1, 0], sequential_colours()[round(0.5 * 239)])


def test_a_logarithmic_scale_gives_equal_ratios_equal_distances() -> None:
    values = np.array([[1.0, 10.0], [100.0, 0.0]], np.float32)
    scale = PictureScale(1.0, 100.0, log_from=0.0)
    found = cells(draw(values, CATALOG["importance"], "", 0, scale=scale), 2, 2)
    places = [0, round(0.5 * 239), 239, 0]
    np.testing.assert_array_equal(found.reshape(4, 3), sequential_colours()[places])
    assert scale.value(0.5) == pytest.approx(10)


def test_cells_beyond_a_scale_have_a_dot_and_the_bar_says_so() -> None:
    values = np.array([[-9.0, 5.0], [3.0, 70.0]], np.float32)
    inside = pixels(draw(values.clip(0, 10), CATALOG["max_logit"], "", 0, scale=PictureScale(0.0, 10.0)))
    beyond = pixels(draw(values, CATALOG["max_logit"], "", 0, scale=PictureScale(0.0, 10.0)))
    differ = (inside != beyond).any(-1)
    cell = 58  # pixels
    fields = differ[TOP : TOP + 2 * cell, LEFT : LEFT + 2 * cell].reshape(2, cell, 2, cell).sum((1, 3))
    np.testing.assert_array_equal(fields, [[9, 0], [0, 9]])
    assert beyond[TOP + 3, LEFT + cell - 4].min() == 255
    assert beyond[TOP + cell + 3, LEFT + 2 * cell - 4].max() == 0
    numbers = differ[TOP - 8 :, LEFT + 2 * cell + 26 :]
    assert numbers[:16].any()
    assert numbers[2 * cell - 4 :].any()


def test_values_out_of_range_take_the_ends() -> None:
    found = cells(draw(np.array([[-1.0, 2.0]], np.float32), CATALOG["self_mass"], "", 0), 1, 2)
    np.testing.assert_array_equal(found[0], sequential_colours()[[0, -1]])


@pytest.mark.parametrize("values", [np.full((2, 2), np.nan, np.float32), np.ones((2, 2), np.float32)])
def test_no_value_and_one_value_can_be_drawn(values: NDArray[np.float32]) -> None:
    assert draw(values, CATALOG["entropy"], "entropy", 0).size == PAGE


@given(st.text("abcdefghijklmnopqrstuvwxyz_./", max_size=60), st.integers(0, 10**7))
@example("vision_model.encoder.second/effective_rank.output", 10**7)
def test_titles_end_on_the_page(title: str, step: int) -> None:
    values = np.array([[123456.0, 98765.0]], np.float32)
    page = pixels(draw(values, CATALOG["attention_distance"], title, step))
    assert (page[:TOP, -2:] == 255).all()


def test_rows_and_columns_are_numbered() -> None:
    # dark pixels left of the first row of cells, and below the first column
    page = pixels(draw(np.zeros((6, 12), np.float32), CATALOG["self_mass"], "", 0))
    assert page[TOP : TOP + 23, LEFT - 14 : LEFT].min() < 100
    assert page[TOP + 6 * 23 : TOP + 6 * 23 + 16, LEFT : LEFT + 19].min() < 100
    assert page[TOP + 23 // 2 - 3 : TOP + 23 // 2 + 3, -90:-30].max() == 255


def test_every_headline_of_two_axes_has_a_picture_and_stages_stand_side_by_side() -> None:
    record = make_record(layers=3, heads=4)
    shown = dict(pictures(record))
    headline = {name for spec in CATALOG.values() if spec.default for name in spec.headline}
    two_axes = {f"geometry_{spec_of(n).family}/{n}" for n in headline if len(spec_of(n).axes) == 2}
    assert set(shown) == two_axes | {"geometry_cone/cone"}
    stages = np.stack([record[f"cone.{stage}"] for stage in ("input", "attention", "output")], axis=1)
    expected = sequential_colours()[(stages.astype(np.float64) * 239).round().astype(int)]
    np.testing.assert_array_equal(cells(shown["geometry_cone/cone"], 3, 3), expected)


def test_stack_and_monitor_are_in_the_tag() -> None:
    record = make_record(stacks=("encoder", "decoder.cross"), metrics=["entropy"])
    assert [tag for tag, _ in pictures(record, "probe")] == [
        "probe_entropy/encoder/entropy",
        "probe_entropy/decoder.cross/entropy",
    ]


@given(st.integers(1, 20_000), st.integers(1, 500), st.none() | st.integers(0, 20_000))
def test_of_a_known_length_ten_pictures_cover_the_run(length: int, every: int, restart: int | None) -> None:
    steps = list(range(0, length, every))
    drawn = session(PictureSchedule(length), steps, restart, PictureSchedule(length))
    assert drawn[0] == 0
    assert len(drawn) <= 9 + (restart is not None)
    # with the last sample, which is drawn anyway, no more than a ninth goes by without a picture
    assert max(np.diff([*drawn, length])) <= length / 9 + every


@given(st.integers(1, 20_000), st.integers(1, 500), st.none() | st.integers(0, 20_000))
def test_of_an_unknown_length_pictures_double(length: int, every: int, restart: int | None) -> None:
    steps = list(range(0, length, every))
    drawn = session(PictureSchedule(-1), steps, restart, PictureSchedule(None))
    assert drawn[0] == 0
    assert len(drawn) <= 2 + np.log2(length) + (restart is not None)
    assert all(later <= 4 * earlier + 2 + 2 * every for earlier, later in itertools.pairwise(drawn))


def session(
    first: PictureSchedule, steps: list[int], restart: int | None, second: PictureSchedule
) -> list[int]:
    """Steps with pictures of a run that may have been killed and resumed at ``restart``."""
    if restart is None:
        return [step for step in steps if first.due(step)]
    before = [step for step in steps if step < restart and first.due(step)]
    return before + [step for step in steps if step >= restart and second.due(step)]


def test_the_last_sample_always_has_pictures() -> None:
    schedule = PictureSchedule(1000)
    assert schedule.due(0)
    assert not schedule.due(1)
    assert schedule.due(1, final=True)


def test_parts_of_a_metric_of_layers_share_one_picture() -> None:
    record = make_record(metrics=select("metric:gate_count"))
    [(tag, picture)] = pictures(record)
    assert tag == "geometry_gates/gate_count"
    grey = pixels(picture)[TOP + 2 * 58 :, LEFT - 10 : LEFT + 250].min(axis=(1, 2)) < 128
    lines = np.flatnonzero(np.diff(np.concatenate([[False], grey, [False]]).astype(int)) == 1)
    assert len(lines) == 2  # eight names by turns on two lines
