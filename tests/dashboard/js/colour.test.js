import assert from "node:assert/strict";
import { test } from "node:test";

import { DIVERGING_COLOURS, SEQUENTIAL_COLOURS, ink, place, scale } from "../../../lightning_geo/dashboard/static/colour.js";

const lightness = ([red, green, blue]) => 0.2126 * red + 0.7152 * green + 0.0722 * blue;

test("the sequential scale grows lighter all the way", () => {
  const steps = SEQUENTIAL_COLOURS.map(lightness);
  assert.ok(steps.every((value, i) => !i || value >= steps[i - 1] - 0.5));
});

test("the diverging scale is lightest in its middle, blue below and orange above", () => {
  const middle = DIVERGING_COLOURS.length / 2;
  assert.ok(lightness(DIVERGING_COLOURS[middle]) > 230);
  assert.ok(DIVERGING_COLOURS[40][2] > DIVERGING_COLOURS[40][0]);
  assert.ok(DIVERGING_COLOURS[215][0] > DIVERGING_COLOURS[215][2]);
});

test("values beyond a scale are at its ends, equal ends are widened", () => {
  assert.deepEqual([-1, 0, 0.5, 1, 9].map((v) => place(scale(0, 1), v)), [0, 0, 128, 255, 255]);
  assert.deepEqual([scale(3, 3).low, scale(3, 3).high], [2.5, 3.5]);
});

test("a signed scale has zero in its middle", () => {
  const { low, high } = scale(-1, 4, true);
  assert.deepEqual([low, high], [-4, 4]);
  assert.deepEqual([scale(0, 0, true).low, scale(0, 0, true).high], [-1, 1]);
});

test("text is black on light and white on dark", () => {
  assert.equal(ink([255, 255, 0]), "#000000");
  assert.equal(ink([40, 20, 80]), "#ffffff");
});
