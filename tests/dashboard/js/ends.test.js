import assert from "node:assert/strict";
import { test } from "node:test";

import { closest, placed } from "../../../lightning_geo/dashboard/static/line_ends.js";

const line = (label, ys) => ({ label, xs: [0, 10, 20], ys });

test("names stand at their lines' ends, apart from each other and within the chart", () => {
  const at = placed([{ y: 50 }, { y: 51 }, { y: 52 }], 0, 100, 12);
  assert.deepEqual(at.map(({ index }) => index), [0, 1, 2]);
  const ys = at.map(({ y }) => y);
  for (let i = 1; i < ys.length; i++) assert.ok(ys[i] - ys[i - 1] >= 12 - 1e-9, ys.join());
  assert.ok(Math.abs((ys[0] + ys[2]) / 2 - 51) < 1e-6); // around where the lines end
  const low = placed([{ y: 99 }, { y: 98 }], 0, 100, 12).map(({ y }) => y);
  assert.deepEqual(low, [88, 100]);
  assert.deepEqual(placed([], 0, 100, 12), []);
  assert.deepEqual(placed([{ y: NaN }], 0, 100, 12), []);
});

test("of more names than there is room for, the outermost and some between are there", () => {
  const many = placed(Array.from({ length: 80 }, (_, i) => ({ y: i })), 0, 100, 12);
  assert.ok(many.length <= 9 && many.length >= 7, String(many.length));
  assert.equal(many[0].index, 0);
  assert.equal(many[many.length - 1].index, 79);
});

test("the line that is nearest to the pointer is told by its value there", () => {
  const lines = [line("layer 0", [0, 1, 2]), line("layer 1", [5, 5, 5]), line("layer 2", [NaN, NaN, NaN])];
  assert.deepEqual(closest(lines, 11, 4), { index: 1, sample: 1 });
  assert.deepEqual(closest(lines, 1, 0.4), { index: 0, sample: 0 });
  assert.equal(closest([line("x", [NaN, NaN, NaN])], 1, 0), null);
  assert.equal(closest([], 1, 0), null);
});
