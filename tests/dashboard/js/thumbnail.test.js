import assert from "node:assert/strict";
import { test } from "node:test";

import { EXAMPLES, examplesOf } from "../../../lightning_geo/dashboard/static/examples.js";
import { shapes, weights } from "../../../lightning_geo/dashboard/static/thumbnail.js";

const entropy = (name) => weights(name).reduce((sum, row) => sum - row.reduce((s, p) => s + p * Math.log(p), 0), 0) / 8;
const mass = (name, of) => weights(name).reduce((sum, row, i) => sum + row.reduce((s, p, j) => s + (of(i, j) ? p : 0), 0), 0) / 8;

test("low and high are two drawings, within their frame", () => {
  for (const [name, pair] of Object.entries(EXAMPLES)) {
    const [low, high] = pair.map((example) => JSON.stringify(shapes(example)));
    assert.notEqual(low, high, name);
    for (const [tag, attributes] of pair.flatMap(shapes)) {
      const numbers = Object.values(attributes).filter((value) => typeof value === "number");
      assert.ok(numbers.length && numbers.every((value) => value >= -1 && value <= 65), `${name}: ${tag} ${JSON.stringify(attributes)}`);
    }
  }
});

test("the drawn attention has what it is an example of", () => {
  assert.ok(entropy("uniform") > entropy("soft") && entropy("soft") > entropy("focused"));
  for (const name of ["focused", "stripes", "groups", "sink"]) for (const row of weights(name)) assert.ok(Math.abs(row.reduce((a, b) => a + b) - 1) < 1e-9);
  const examples = { self: (i, j) => i === j, previous: (i, j) => j === i - 1, next: (i, j) => j === i + 1, first: (i, j) => j === 0, back: (i, j) => j < i, ahead: (i, j) => j > i, special: (i, j) => j === 0 || j === 7, far: (i, j) => Math.abs(i - j) >= 4 };
  for (const [name, of] of Object.entries(examples)) assert.ok(mass(name, of) > 1.5 * mass("uniform", of), name);
  assert.ok(mass("near", examples.far) < 0.1 && mass("causal", examples.ahead) < 0.1 && mass("text", examples.special) < 0.1);
  assert.ok(weights("sink").every((row) => row.length === 9 && row[0] > 0.6));
});

test("a part has the drawing of its own, of its metric, or none", () => {
  assert.equal(examplesOf({ name: "drift.query", base: "drift" }), EXAMPLES.drift);
  assert.equal(examplesOf({ name: "gate.open", base: "gate" }), EXAMPLES["gate.open"]);
  assert.equal(examplesOf({ name: "constructor", base: "constructor" }), null);
});
