import assert from "node:assert/strict";
import { test } from "node:test";

import { bySeverity, cellsOf, evidence, keyOf, layersText, mapOf, meanOver, movedMost, movedText, place, span, title } from "../../../lightning_geo/dashboard/static/findings.js";
import { edges } from "../../../lightning_geo/dashboard/static/outline.js";
import { START, decodeState, encode } from "../../../lightning_geo/dashboard/static/state.js";

const finding = (more = {}) => ({
  rule: "entropy_collapse", severity: "warning", metric: "entropy", stack: "encoder", layers: [1], heads: [[1, 0], [1, 2]],
  since_step: 40, until_step: null, value: 0.0123, usual: [0.9, 0.9], message: "m", causes: [], next: [], ...more,
});

test("a finding is put into words", () => {
  assert.equal(title("entropy_collapse"), "Entropy collapse");
  assert.deepEqual([title(""), title("__proto__")], ["", "  proto  "]);
  assert.equal(span(finding()), "since step 40");
  assert.equal(span(finding({ until_step: 60 })), "from step 40 to 60, ended");
  assert.equal(evidence(finding()), "entropy 0.0123, usual 0.9");
  assert.equal(evidence(finding({ value: null, usual: [0.5, null] })), "entropy not finite, usual 0.5 or more");
  assert.equal(evidence(finding({ usual: [null, 2] })), "entropy 0.0123, usual 2 or less");
  assert.equal(evidence(finding({ usual: [null, null] })), "entropy 0.0123, usual not known");
  assert.equal(evidence(finding({ metric: "" })), "");
  assert.deepEqual([[3], [3, 4], [0, 3, 4, 5, 9], [], [1, 3, 5, 7, 9]].map((l) => layersText(l)), ["layer 3", "layers 3 and 4", "layers 0, 3 to 5 and 9", "", "layers 1, 3, 5, 7 and more"]);
  assert.deepEqual(bySeverity([{ level: "well" }, { level: "critical", run: 1 }, { level: "critical", run: 2 }, { level: "unknown" }]).map(({ level, run }) => run ?? level), [1, 2, "unknown", "well"]);
});

test("a click leads to a map that fits in an address", () => {
  const hostile = finding({ rule: "a&b=<img>|#", stack: "__proto__" });
  const state = { ...START, run: "r", ...mapOf(hostile) };
  assert.deepEqual(decodeState(encode(state)), state);
  assert.deepEqual([state.view, state.metric, state.step, state.finding], ["map", "entropy", 40, keyOf(hostile)]);
  assert.ok(!("metric" in mapOf(finding({ metric: "" }))));
});

test("cells of a finding are those of its heads, or of its layers", () => {
  assert.deepEqual([...cellsOf(finding(), 2, 3)], [0, 0, 0, 1, 0, 1]);
  assert.deepEqual([...cellsOf(finding({ heads: [] }), 2, 3)], [0, 0, 0, 1, 1, 1]);
  assert.deepEqual([...cellsOf(finding(), 2, 1)], [0, 1]); // a metric of layers, looked at for a finding of heads
  assert.deepEqual([...cellsOf(finding({ layers: [-1, 7], heads: [[9, 9], [-1, 0], [0, 1e9]] }), 2, 3)], [0, 0, 0, 0, 0, 0]);
});

test("neighbours share one outline", () => {
  const length = (mask, rows, cols) => edges(Uint8Array.from(mask), rows, cols).length;
  assert.equal(length([1, 1, 1, 1], 2, 2), 8);
  assert.equal(length([1, 0, 0, 1], 2, 2), 8);
  assert.equal(length([0, 0, 0, 0], 2, 2), 0);
  assert.deepEqual(edges(Uint8Array.from([0, 1]), 1, 2), [[1, 0, 2, 0], [1, 1, 2, 1], [1, 0, 1, 1], [2, 0, 2, 1]]);
});

test("a finding's line is the mean of its cells with a value", () => {
  const series = { steps: [0, 10, 20], layers: 1, heads: 3, values: Float32Array.from([1, 2, 9, NaN, 4, 9, NaN, NaN, 9]) };
  assert.deepEqual([...meanOver(series, [1, 1, 0])], [1.5, 4, NaN]);
});

test("bars lie within the run", () => {
  assert.deepEqual(place(finding(), 0, 80), { left: 50, width: 50, open: true });
  assert.deepEqual(place(finding({ until_step: 60 }), 0, 80), { left: 50, width: 25, open: false });
  assert.deepEqual(place(finding({ since_step: 1e15, until_step: 5 }), 0, 80), { left: 100, width: 0, open: false });
  assert.deepEqual(place(finding(), 40, 40), { left: 0, width: 100, open: true });
});

test("what moved most is by the range where there is one, and names the layer", () => {
  const of = (name, range, values) => ({ spec: { name, range }, series: { steps: [0, 10], layers: 2, heads: 1, values: Float32Array.from(values) } });
  const moved = movedMost([
    of("still", [0, 1], [0.5, 0.5, 0.5, 0.5]), of("share", [0, 1], [0.5, 0.25, 0.5, 0.75]),
    of("norm", [0, null], [10, 10, 10, 30]), of("absent", [0, 1], [NaN, NaN, 1, 1]),
  ], 5);
  assert.deepEqual(moved.map(({ metric, share }) => [metric, share]), [["norm", 0.5], ["share", 0.25]]);
  assert.equal(movedText(moved[1]), "share rose from 0.375 to 0.625, most in layer 1 (0.25 to 0.75).");
});
