import assert from "node:assert/strict";
import { test } from "node:test";

import { DIVERGING_COLOURS, SEQUENTIAL_COLOURS, ink, place, scale, valueAt } from "../../../lightning_geo/dashboard/static/colour.js";

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

test("a logarithmic scale gives equal ratios equal distances, and its values lead back", () => {
  const log = scale(1, 10000, false, 0);
  assert.deepEqual([1, 10, 100, 1000, 10000].map((v) => place(log, v)), [0, 64, 128, 191, 255]);
  assert.ok(Math.abs(valueAt(log, 0.5) - 100) < 1e-9);
  const shifted = scale(-2, 61, false, -3); // kurtosis: 1 to 64 above -3
  assert.ok(Math.abs(valueAt(shifted, 0.5) - 5) < 1e-9);
  assert.equal(scale(0, 5, false, 0).from, null);
  const one = scale(4, 4, false, 0);
  assert.deepEqual([one.low, one.high, place(one, 4)], [2, 8, 128]);
});

test("values beyond a scale have a colour that none within has", () => {
  const capped = scale(0, 1, false, null, [-3, 7]);
  assert.deepEqual([capped.under, capped.over], [true, true]);
  assert.deepEqual([-3, -0.01, 0, 1, 1.01, 7].map((v) => place(capped, v)), [0, 0, 24, 231, 255, 255]);
  const over = scale(0, 1, false, null, [0, 7]);
  assert.deepEqual([over.under, over.over, place(over, 0), place(over, 1)], [false, true, 0, 231]);
  const signed = scale(-1, 0.5, true, null, [-1, 9]);
  assert.deepEqual([signed.under, signed.over, place(signed, -1)], [false, true, 0]);
});
