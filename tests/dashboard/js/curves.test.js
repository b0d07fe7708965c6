import assert from "node:assert/strict";
import { test } from "node:test";

import { at, described, outcome, read, ruled } from "../../../lightning_geo/dashboard/static/curves.js";

const curve = (tag, steps, values) => ({ tag, steps, values: Float64Array.from(values, (v) => v ?? NaN) });

test("what the server sends is read as it was written; null is not finite", () => {
  const got = read({ tags: ["a"], curves: { loss: { tag: "a", steps: [0, 5], values: [1, null] } }, epochs: [[0, 0]], evaluations: [5], stamp: "x" });
  assert.deepEqual([got.curves.loss.tag, got.curves.loss.steps, [...got.curves.loss.values]], ["a", [0, 5], [1, NaN]]);
  assert.deepEqual([got.tags, got.epochs, got.evaluations, got.stamp], [["a"], [[0, 0]], [5], "x"]);
});

test("a curve's value at a step is the last one logged by then", () => {
  const loss = curve("loss", [10, 20, 30], [3, null, 1]);
  assert.equal(at(loss, 9), "");
  assert.equal(at(loss, 10), "3");
  assert.equal(at(loss, 29), "not finite");
  assert.equal(at(loss, 99), "1");
  assert.equal(at(undefined, 99), "");
});

test("a step is told by its epoch, evaluation and findings", () => {
  const run = { epochs: [[0, 0], [15, 1]], evaluations: [14, 28] };
  const findings = [{ since_step: 28, rule: "low_entropy" }];
  assert.equal(described(run, findings, 28, 1), "step 28 · epoch 1 · evaluation · low entropy begins");
  assert.equal(described(run, findings, 3, 1), "step 3 · epoch 0");
  assert.equal(described({ epochs: [], evaluations: [] }, [], 3.4, 1), "step 3");
  assert.equal(described(run, [], 13.2, 1), "step 13 · epoch 0 · evaluation at 14"); // within reach of the pointer
});

test("ticks that would lie closer than a few pixels are left out", () => {
  assert.deepEqual(ruled([0, 10, 20], (step) => 10 * step), [0, 10, 20]);
  assert.deepEqual(ruled([0, 10, 20], (step) => step / 10), []);
  assert.deepEqual(ruled([], (step) => step), []);
});

test("the outcome is of what both runs logged, at the steps where it was", () => {
  const a = { score: curve("val/accuracy", [30, 60], [0.5, 0.961]), loss: curve("train/loss", [0, 59], [2, 0.1]) };
  const b = { score: curve("val/accuracy", [30, 60], [0.4, 0.718]), loss: curve("train/loss", [0, 49], [2, null]) };
  assert.deepEqual(outcome(a, b), [
    "val/accuracy 0.961 against 0.718 at step 60",
    "train/loss 0.1 at step 59 against not finite at step 49",
  ]);
  assert.deepEqual(outcome(a, { score: curve("val/f1", [60], [1]) }), []); // other scores cannot be compared
  assert.deepEqual(outcome(a, {}), []);
  assert.deepEqual(outcome({ loss: curve("loss", [], []) }, { loss: curve("loss", [1], [1]) }), []);
});
