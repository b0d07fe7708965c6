"""Pictures of the report: what they show, read back from the SVG."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import lightning_geo
from lightning_geo.report.charts import Event, balance, bars, lines, sparkline, timeline
from lightning_geo.report.figures import classes, evolution, legend, matrix
from lightning_geo.utils.colours import CATEGORICAL, DIVERGING, SEQUENTIAL, sequential_colours
from support.pictures import SVG, parsed, pixels


def test_one_pixel_is_one_number() -> None:
    values = np.array([[0.0, 1.0, 2.0], [np.nan, 0.5, 4.0]])
    svg = matrix(values, "entropy", 0.0, 2.0)
    shown = pixels(svg)
    assert shown.shape == (2, 3, 4)
    np.testing.assert_array_equal(shown[0, 0, :3], sequential_colours()[0])
    np.testing.assert_array_equal(shown[0, 2, :3], sequential_colours()[-1])
    np.testing.assert_array_equal(shown[1, 2, :3], sequential_colours()[-1])  # beyond the end
    assert shown[..., 3].tolist() == [[255, 255, 255], [0, 255, 255]]  # absent: what is behind shows
    assert "url(#absent)" in svg
    assert "url(#absent)" not in matrix(np.ones((2, 2)), "x", 0, 1)
    parsed(svg)


def test_differences_have_a_light_middle() -> None:
    shown = pixels(matrix(np.array([[-1.0, 0.0, 1.0]]), "x", -1.0, 1.0, diverging=True))[0, :, :3].astype(int)
    assert shown[1].min() > 230
    assert shown[0, 2] > shown[0, 0] + 50  # blue
    assert shown[2, 0] > shown[2, 2] + 50  # orange


def test_classes_have_the_colours_of_their_legend() -> None:
    labels = np.array([[0, 7, -1], [3, 3, 1]])
    svg = classes(labels, "x", np.array([[False, True, False], [False, False, True]]))
    shown = pixels(svg)
    key = parsed(legend([f"class {i}" for i in range(8)], "x"))
    colours = [bytes.fromhex(rect.attrib["fill"][1:]) for rect in key.iter(f"{SVG}rect")]
    assert len(set(colours)) == 8
    for at, label in np.ndenumerate(labels):
        assert shown[at][3] == (255 if label >= 0 else 0)
        assert label < 0 or bytes(shown[at][:3]) == colours[label]
    assert "url(#absent)" in svg
    assert len(list(parsed(svg).iter(f"{SVG}circle"))) == 2


def test_the_dashboard_has_the_same_colours() -> None:
    script = (Path(lightning_geo.__file__).parent / "dashboard" / "static" / "colour.js").read_text(
        encoding="utf-8"
    )
    for name, ours in (
        ("VIRIDIS", SEQUENTIAL),
        ("DIVERGING", DIVERGING),
        ("LINES", " ".join(CATEGORICAL)),
    ):
        theirs = re.search(rf"const {name} =(.+?);", script, re.DOTALL)
        assert theirs is not None
        assert re.findall("[0-9a-f]{6}", theirs[1]) == re.findall("[0-9a-f]{6}", ours)


def test_evolution_has_layers_down_and_samples_right() -> None:
    values = np.arange(12.0).reshape(4, 3)  # [sample, layer]
    shown = pixels(evolution(values, np.arange(4), "x", 0.0, 11.0))
    assert shown.shape == (3, 4, 4)
    np.testing.assert_array_equal(shown[2, 3, :3], sequential_colours()[-1])
    assert pixels(evolution(np.ones((5000, 3)), np.arange(5000), "x", 0, 1)).shape == (3, 300, 4)


def test_curves_end_where_the_values_end() -> None:
    steps = np.array([0, 10, 100])
    svg = lines([("a", steps, np.array([0.0, np.nan, 2.0]))], "x", (np.zeros(3), np.full(3, 4.0)))
    root = parsed(svg)
    [line] = root.iter(f"{SVG}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) == 2  # what has no value has no point
    assert points[0] == (52.0, 152.0)
    assert points[1] == (352.0, 87.0)  # half of the way up
    assert len(list(root.iter(f"{SVG}polygon"))) == 1
    assert lines([("a", steps, np.full(3, np.nan))], "x") == ""


def test_bars_are_as_long_as_their_numbers() -> None:
    svg = bars(np.array([1.0, 2.0, np.nan]), "x")
    assert [float(rect.attrib["width"]) for rect in parsed(svg).iter(f"{SVG}rect")] == [150.0, 300.0, 0.0]
    assert "no value" in svg


def test_bars_of_a_balance_lie_on_their_side() -> None:
    root = parsed(balance([("a", -2.0), ("b", 1.0)], "x", ("against", "for")))
    against, supporting = (rect.attrib for rect in root.iter(f"{SVG}rect"))
    assert float(against["width"]) == 2 * float(supporting["width"])
    assert float(against["x"]) + float(against["width"]) == float(supporting["x"])  # they meet at zero
    assert (against["class"], supporting["class"]) == ("against", "bar")


def test_events_and_evaluations_stand_at_their_step() -> None:
    curve = ("loss", np.array([10, 20, 30]), np.array([3.0, np.nan, 1.0]))
    events = [Event(20, "1", "critical"), Event(0, "2", "note")]
    root = parsed(timeline([curve], "x", events, [(0, np.array([20, 40]), np.array([0.5, 0.6]), "val")]))
    lines_at = {path.attrib["class"]: path.attrib["d"] for path in root.iter(f"{SVG}path")}
    assert lines_at["event critical"].startswith("M292.0 ")
    assert lines_at["event note"].startswith("M52.0 ")  # before the loss begins
    dots = [(dot.attrib["cx"], dot.attrib["cy"]) for dot in root.iter(f"{SVG}circle")]
    assert dots == [("292.0", "97.0"), ("532.0", "172.0")]  # half of the way from 3 to 1; after the last loss
    assert timeline([], "x", events) == ""


def test_a_sparkline_ends_at_the_last_value() -> None:
    root = parsed(sparkline(np.array([np.nan, 0.0, 1.0, np.nan]), "x"))
    [line], [end] = root.iter(f"{SVG}polyline"), root.iter(f"{SVG}circle")
    first, last = line.attrib["points"].split()
    assert last == f"{end.attrib['cx']},{end.attrib['cy']}"
    assert float(first.split(",")[1]) > float(last.split(",")[1])  # up
    assert sparkline(np.full(3, np.nan), "x") == ""


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.0071, 9.998), (-3.0, 45.0), (1e-9, 2e-9), (99.0, 101.0)])
def test_axes_have_three_to_six_round_numbers(ends: tuple[float, float]) -> None:
    root = parsed(lines([("a", np.array([0, 9]), np.array(ends))], "x"))
    grid = [path for path in root.iter(f"{SVG}path") if path.attrib["class"] == "grid"]
    assert 3 <= len(grid) <= 6
    assert all(22 <= float(path.attrib["d"].split()[1].split("H")[0]) <= 152 for path in grid)


def test_names_are_text() -> None:
    hostile = '<script>alert(1)</script>"&'
    curves = [(hostile, np.arange(2), np.arange(2.0))] * 2
    for svg in (
        lines(curves, hostile), matrix(np.ones((2, 2)), hostile, 0, 1), bars(np.ones(2), hostile),
        classes(np.ones((2, 2), int), hostile), legend([hostile], hostile), sparkline(np.ones(2), hostile),
        timeline(curves, hostile, [Event(0, hostile, "note")], [(0, np.arange(2), np.ones(2), hostile)]),
        balance([(hostile, 1.0)], hostile, (hostile, hostile)),
    ):  # fmt: skip
        assert "<script" not in svg
        assert parsed(svg).attrib["aria-label"] == hostile
