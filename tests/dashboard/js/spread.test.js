import assert from "node:assert/strict";
import { test } from "node:test";

import { colours } from "../../../lightning_geo/dashboard/static/scales.js";
import { joined, quantiles, spreadOf } from "../../../lightning_geo/dashboard/static/spread.js";

/** A generator of numbers in [0, 1) that is the same in every run. */
function random(seed) {
  let state = seed;
  return () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
}

/** By sorting, the slow way. */
function sorted(values, shares, above) {
  const known = [...values].filter((v) => Number.isFinite(v) && v > above).sort((a, b) => a - b);
  return known.length ? shares.map((share) => known[Math.round(share * (known.length - 1))]) : null;
}

test("quantiles are those of sorted numbers, of every size and sign", () => {
  const draw = random(1);
  const shares = [0, 0.02, 0.25, 0.5, 0.98, 1];
  for (const count of [1, 2, 3, 72, 5000]) {
    for (const above of [-Infinity, -1, 0]) {
      const values = Float32Array.from({ length: count }, () => (draw() - 0.5) * 10 ** (20 * draw() - 10));
      values.forEach((_, i) => draw() < 0.05 && (values[i] = [NaN, Infinity, -Infinity, 0][Math.floor(4 * draw())]));
      const [ours, theirs] = [quantiles(values, shares, above), sorted(values, shares, above)];
      assert.deepEqual(ours?.map((v) => v + 0), theirs?.map((v) => v + 0), `${count} above ${above}`);
    }
  }
});

test("quantiles leave out what is not finite, and are of the given part of a buffer", () => {
  assert.deepEqual(quantiles(Float32Array.from([3, NaN, 1, 2, Infinity]), [0, 0.5, 1]), [1, 2, 3]);
  assert.equal(quantiles(Float32Array.from([NaN]), [0.5]), null);
  assert.equal(quantiles(Float32Array.from([-1, 0]), [0.5], 0), null);
  assert.deepEqual(quantiles(Float32Array.from([9, 9, 1, 2]).subarray(2), [0, 1]), [1, 2]);
});

test("values that lie near belong to a scale, outliers do not", () => {
  const even = Float32Array.from({ length: 1000 }, (_, i) => i / 1000);
  const { low, high, least, most } = spreadOf(even);
  assert.deepEqual([low, high], [least, most]);
  even[3] = 40;
  even[4] = -7;
  const found = spreadOf(even);
  assert.ok(found.low >= 0 && found.high < 1);
  assert.deepEqual([found.least, found.most], [-7, 40]);
});

test("a logarithmic scale begins above the number that has no logarithm, and near is by ratio", () => {
  const values = Float32Array.from({ length: 500 }, (_, i) => 2 ** (i / 100)); // 1 to 32
  values[0] = 0;
  values[1] = 1e6;
  const spread = spreadOf(values, 0);
  assert.ok(spread.low > 1 && spread.low < 1.03 && spread.high < 32);
  assert.deepEqual([spread.least, spread.most], [0, 1e6]);
  const scale = colours(spread, false, 0);
  assert.deepEqual([scale.under, scale.over, scale.from], [true, true, 0]);
  const full = colours(spread, false, 0, true);
  assert.deepEqual([full.under, full.over, full.high], [true, false, 1e6]); // 0 has no place on it
});

test("of one value, of none, and where nearly all are the same", () => {
  assert.equal(spreadOf(Float32Array.from([NaN])), null);
  assert.deepEqual(colours(null, false).low, 0);
  assert.deepEqual(spreadOf(Float32Array.from([5])), { low: 5, high: 5, lowest: 5, least: 5, most: 5 });
  const same = new Float32Array(1000).fill(1);
  same[7] = 0.25;
  assert.deepEqual([spreadOf(same).low, spreadOf(same).high], [0.25, 1]);
  assert.equal(colours(spreadOf(Float32Array.from([0, 0])), false, 0).from, null);
});

test("two runs share a scale that holds both", () => {
  const [a, b] = [spreadOf(Float32Array.from([0, 1])), spreadOf(Float32Array.from([2, 5]))];
  assert.deepEqual(joined([a, null, b]), { low: 0, high: 5, lowest: 0, least: 0, most: 5 });
  assert.equal(joined([null]), null);
});
