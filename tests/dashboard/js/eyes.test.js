import assert from "node:assert/strict";
import { test } from "node:test";

import { contrast, graded, luminance, pickColour } from "../../../lightning_geo/dashboard/static/contrast.js";
import { apart, shortened } from "../../../lightning_geo/dashboard/static/names.js";
import { signed } from "../../../lightning_geo/dashboard/static/signs.js";

const channels = (css) => css.match(/\d+/g).map(Number);

test("contrast is that of WCAG", () => {
  assert.equal(contrast([0, 0, 0], [255, 255, 255]), 21);
  assert.ok(Math.abs(contrast([118, 118, 118], [255, 255, 255]) - 4.54) < 0.01); // #767676, its known example
  assert.equal(luminance([255, 255, 255]), 1);
});

for (const [dark, ground] of [[false, [255, 255, 255]], [true, [31, 31, 31]]]) {
  test(`every line is seen on the ${dark ? "dark" : "light"} ground`, () => {
    for (const count of [1, 2, 6, 32, 80]) {
      const colours = Array.from({ length: count }, (_, i) => graded(i, count, dark));
      for (const colour of colours) assert.ok(contrast(channels(colour), ground) >= 3, colour);
      assert.equal(new Set(colours).size, count); // and each layer has its own
      const shades = colours.map((colour) => luminance(channels(colour)));
      assert.deepEqual(shades, [...shades].sort((a, b) => a - b)); // from dark to light
    }
    const picks = Array.from({ length: 8 }, (_, i) => pickColour(i, dark));
    for (const colour of picks) assert.ok(contrast(channels(colour), ground) >= 3, colour);
    assert.equal(new Set(picks).size, 8);
  });
}

test("names are cut in the middle, and names that differ stay different", () => {
  const cut = (...names) => [...shortened(names, 24).values()];
  assert.deepEqual(cut("short", "other"), ["short", "other"]);
  assert.deepEqual(cut("bert_finetune_with_a_long_name/version_10"), ["bert_finetun…/version_10"]);
  const sweep = cut("sweep/base/lr=0.001,warmup=100,seed=1/version_0", "sweep/base/lr=0.003,warmup=100,seed=1/version_0");
  assert.ok(sweep[0].includes("0.001") && sweep[1].includes("0.003"), sweep.join());
  for (const name of sweep) assert.ok(name.length <= 26, name);
  const rates = cut("entropy_collapse/lr_0.001/version_0", "entropy_collapse/lr_0.01/version_0");
  assert.deepEqual(rates, ["…pse/lr_0.001/version_0", "…apse/lr_0.01/version_0"]);
  assert.deepEqual([...shortened([], 24)], []);
});

test("a cell of a diverging map has its sign, if it is far from zero", () => {
  const values = new Float32Array([1, -1, 0.05, NaN, 0.5]);
  assert.deepEqual(signed(values, { low: -1, high: 1 }), [[0, true], [1, false], [4, true]]);
  assert.deepEqual(signed(values, { low: 0, high: 1 }), []);
});

test("folders that all runs are in are left out", () => {
  const cut = (...names) => [...apart(names, 24).values()];
  assert.deepEqual(cut("sweep/a/seed_0", "sweep/a/seed_1"), ["seed_0", "seed_1"]);
  assert.deepEqual(cut("sweep/lr_1/v", "sweep/lr_2/v"), ["lr_1/v", "lr_2/v"]);
  assert.deepEqual(cut("a", "a/b"), ["a", "a/b"]);
  assert.deepEqual(cut("a/b", "a/bc", "x"), ["a/b", "a/bc", "x"]);
  assert.deepEqual(cut("a/b"), ["a/b"]);
  assert.deepEqual(cut(), []);
});
