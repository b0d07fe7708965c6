import assert from "node:assert/strict";
import { test } from "node:test";

import { START, decodeState, encode, settled, toggled } from "../../../lightning_geo/dashboard/static/state.js";

const metric = (name, headline = false) => ({ name, headline });
const index = {
  metrics: [metric("attention_distance"), metric("entropy", true), metric("hidden_norm")],
  runs: [
    { run: "a", monitors: [{ monitor: "geometry", stacks: [{ stack: "encoder", metrics: ["attention_distance", "entropy"] }, { stack: "decoder", metrics: ["hidden_norm"] }] }] },
    { run: "__proto__", monitors: [{ monitor: "other", stacks: [{ stack: "encoder", metrics: ["hidden_norm"] }] }] },
  ],
};

test("a view comes back from its text, whatever the names", () => {
  const state = {
    view: "compare", run: "a&b=c/<img>", other: "../../x", monitor: "geometry", stack: "decoder.cross", metric: "drift.query",
    loss: "=train/loss", score: "-", rate: "", step: 120, range: "fixed", change: true, align: "fraction", heads: "min", inspected: { layer: 5, head: 3 }, finding: "40 encoder low", picked: [{ layer: 3, head: 11 }, { layer: 0, head: null }],
    shown: ["a", "b"], columns: ["entropy"], sort: "up loss", seeds: "each", picture: "heads", brush: [["loss", 0.1, 0.5]],
  };
  assert.deepEqual(decodeState(encode(state)), state);
  assert.equal(encode(START), "");
  assert.deepEqual(decodeState(""), START);
});

test("nonsense in an address is left out", () => {
  const state = decodeState("view=evil&step=-1e9&range=__proto__&picked=a.b_1.2_99999.1&change=yes&align=no");
  assert.deepEqual(state, { ...START, picked: [{ layer: 1, head: 2 }] });
});

test("what is not there gives way to what is", () => {
  assert.deepEqual({ ...settled(START, index) }, { ...START, run: "a", monitor: "geometry", stack: "encoder", metric: "entropy" });
  const moved = settled({ ...START, run: "__proto__", metric: "entropy", other: "gone" }, index);
  assert.deepEqual([moved.run, moved.monitor, moved.stack, moved.metric, moved.other], ["__proto__", "other", "encoder", "hidden_norm", ""]);
  assert.deepEqual(settled(START, { runs: [], metrics: [] }), START);
});

test("picking a cell twice drops it, and sixteen are the most", () => {
  const once = toggled([], 2, null);
  assert.deepEqual(once, [{ layer: 2, head: null }]);
  assert.deepEqual(toggled(once, 2, null), []);
  assert.equal(toggled(once, 2, 0).length, 2);
  let many = [];
  for (let head = 0; head < 20; head++) many = toggled(many, 0, head);
  assert.deepEqual([many.length, many[0].head], [16, 4]);
});
