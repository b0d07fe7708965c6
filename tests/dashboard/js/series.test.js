import assert from "node:assert/strict";
import { test } from "node:test";

import { across, aligned, continued, decode, difference, evolution, extent, frame, largest, nearest, trace } from "../../../lightning_geo/dashboard/static/series.js";

// two samples of 2 layers × 3 heads; the last head of layer 0 is absent at step 10
const series = { steps: [0, 10], layers: 2, heads: 3, values: new Float32Array([1, 2, 3, 4, 5, 6, 2, 4, NaN, 8, 10, 12]) };
const list = (values) => Array.from(values);

test("what the server sends is read as it was written", () => {
  const text = JSON.stringify({ shape: [1, 1, 2], steps: [7], first: 3, total: 9, stamp: 1.25 });
  const header = new TextEncoder().encode(text.padEnd(Math.ceil(text.length / 4) * 4));
  const bytes = new Uint8Array(4 + header.length + 8);
  new DataView(bytes.buffer).setUint32(0, header.length, true);
  bytes.set(header, 4);
  new DataView(bytes.buffer).setFloat32(4 + header.length, 1.5, true);
  new DataView(bytes.buffer).setFloat32(8 + header.length, NaN, true);
  const read = decode(bytes.buffer);
  assert.deepEqual([read.steps, read.layers, read.heads, read.first, read.total, read.stamp], [[7], 1, 2, 3, 9, 1.25]);
  assert.deepEqual(list(read.values), [1.5, NaN]);
});

test("samples that follow on a series are added to it", () => {
  const more = { steps: [20], layers: 2, heads: 3, values: new Float32Array([1, 1, 1, 1, 1, 1]), total: 3, stamp: 5, first: 2 };
  const whole = continued(series, more);
  assert.deepEqual([whole.steps, whole.total, whole.stamp, whole.first], [[0, 10, 20], 3, 5, 0]);
  assert.deepEqual(list(frame(whole, 1)), list(frame(series, 1)));
  assert.deepEqual(list(frame(whole, 2)), [1, 1, 1, 1, 1, 1]);
  assert.equal(continued(series, { steps: [], values: new Float32Array() }), series);
  assert.equal(continued(series, { ...more, heads: 4 }), null);
});

test("a frame is one sample, and its change is absent where either is", () => {
  assert.deepEqual(list(frame(series, 1)), [2, 4, NaN, 8, 10, 12]);
  assert.deepEqual(list(difference(frame(series, 1), frame(series, 0))), [1, 2, NaN, 4, 5, 6]);
});

test("runs of different models are compared where both have the cell", () => {
  const small = { layers: 1, heads: 2 };
  const apart = across(series, frame(series, 0), small, new Float32Array([5, 7]));
  assert.deepEqual([apart.layers, apart.heads], [2, 3]);
  assert.deepEqual(list(apart.values), [4, 5, NaN, NaN, NaN, NaN]);
});

test("the cells that differ most come first, absent ones never", () => {
  const found = largest(new Float32Array([0.5, NaN, -3, 2, Infinity, 2]), 3, 3);
  assert.deepEqual(found, [
    { layer: 0, head: 2, value: -3 },
    { layer: 1, head: 0, value: 2 },
    { layer: 1, head: 2, value: 2 },
  ]);
});

test("the extent leaves out what is not finite", () => {
  assert.deepEqual(extent(new Float32Array([NaN, 3, -Infinity, -2, Infinity])), [-2, 3]);
  assert.equal(extent(new Float32Array([NaN])), null);
});

test("the nearest sample is found between, before and behind all", () => {
  const steps = [0, 10, 20, 40];
  assert.deepEqual([-5, 4, 5, 6, 29, 31, 99].map((step) => nearest(steps, step)), [0, 0, 0, 1, 2, 3, 3]);
  assert.equal(nearest([], 3), -1);
});

test("runs are aligned by step or by fraction", () => {
  const long = [0, 100, 200];
  const short = [0, 10, 20];
  assert.equal(aligned(long, short, 100, "step"), 2);
  assert.equal(aligned(long, short, 100, "fraction"), 1);
  assert.equal(aligned([50], short, 50, "fraction"), 2); // one sample is all there is: it is the end
});

test("a trace is of a head, of a layer's heads or of the model", () => {
  assert.deepEqual(list(trace(series, 1, 2)), [6, 12]);
  assert.deepEqual(list(trace(series, 0, null)), [2, 3]);
  assert.deepEqual(list(trace(series, 1, null, "max")), [6, 12]);
  assert.deepEqual(list(trace(series, null, null)), [3.5, 7.199999809265137].map(Math.fround).map((v, i) => (i ? 36 / 5 : v)));
  assert.deepEqual(list(trace(series, 7, 0)), [NaN, NaN]); // another model has that layer
});

test("an evolution has a row per layer and a column per sample", () => {
  const picture = evolution(series);
  assert.deepEqual([picture.layers, picture.samples], [2, 2]);
  assert.deepEqual(list(picture.values), [2, 3, 5, 10]);
});

test("a layer is its heads' mean, lowest, highest or their spread, of those with a value", () => {
  const of = (by) => list(trace(series, 0, null, by));
  assert.deepEqual([of("mean"), of("min"), of("max"), of("spread")], [[2, 3], [1, 2], [3, 4], [2, 2]]);
  const absent = { ...series, values: new Float32Array(12).fill(NaN) };
  assert.deepEqual(list(trace(absent, 0, null, "spread")), [NaN, NaN]);
});
