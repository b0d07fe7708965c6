import assert from "node:assert/strict";
import { test } from "node:test";

import { Rows } from "../../../lightning_geo/dashboard/static/api.js";
import { contrast } from "../../../lightning_geo/dashboard/static/contrast.js";
import { inShort } from "../../../lightning_geo/dashboard/static/findings.js";
import { exact } from "../../../lightning_geo/dashboard/static/format.js";
import { axesOf, brushed, marksOf, moved, nearestLine, passing, placeOn } from "../../../lightning_geo/dashboard/static/parallel_axes.js";
import { RunColours, shownRuns } from "../../../lightning_geo/dashboard/static/run_colours.js";
import { differing, meanOf, readRows, seedGroups, sorted, tagOf, toggledSort, valueOf } from "../../../lightning_geo/dashboard/static/run_rows.js";
import { START, decodeState, encode } from "../../../lightning_geo/dashboard/static/state.js";

const HOSTILE = '<img src=x onerror="alert(1)">';
const verdict = (level) => ({ level, verdict: HOSTILE, findings: [] });
const sent = (run, { level = "well", loss = null, values = [], hp = [] } = {}) => ({ run, values, damaged: [], pending: false, verdict: verdict(level), loss: loss === null ? null : ["loss", 10, loss], score: null, hyperparameters: hp });
const rowsOf = (...rows) => readRows({ rows, pending: 0, stamp: "s" }).rows;

test("a run has the colour that TensorBoard gives it, and keeps it while others come", () => {
  const colours = new RunColours();
  const names = Array.from({ length: 9 }, (_, i) => `run_${i}`);
  assert.equal(colours.of("run_1", false, names).swatch, "#12b5cb"); // without TensorBoard: by the page's own order
  colours.update(["other", "__proto__", ...names]);
  assert.deepEqual(["other", "__proto__", "run_0", "run_5"].map((run) => colours.of(run, false).swatch), ["#425066", "#12b5cb", "#e52592", "#425066"]);
  assert.equal(colours.of("other", true).swatch, "#8e98a3");
  assert.deepEqual(["run_4", "run_5"].map((run) => colours.of(run, false).dashed), [false, true]); // the same colour again
  colours.update(["earlier", "other", "__proto__", ...names]);
  assert.equal(colours.of("other", false).swatch, "#425066");
  assert.equal(colours.of("earlier", false).swatch, "#9334e6"); // the twelfth
  for (const dark of [false, true]) {
    for (const name of names) assert.ok(contrast(colours.of(name, dark).line.match(/\d+/g).map(Number), dark ? [31, 31, 31] : [255, 255, 255]) >= 3);
  }
});

test("runs that TensorBoard groups have one colour, and those that it leaves out are grey", () => {
  const colours = new RunColours();
  colours.update(["a/lr_1/s0", "a/lr_2/s0", "a/lr_1/s1", "b"]);
  colours.groupBy("lr_(\\d)");
  assert.deepEqual(["a/lr_1/s0", "a/lr_1/s1", "a/lr_2/s0", "b"].map((run) => colours.of(run, false).swatch), ["#425066", "#425066", "#12b5cb", "#e0e0e0"]);
  colours.groupBy("(");
  assert.equal(colours.of("b", true).swatch, "#3b3b3b");
  colours.groupBy(null);
  assert.equal(colours.of("b", false).swatch, "#f9ab00");
});

test("the first twelve runs are shown that the filter leaves, unless others are chosen", () => {
  const runs = Array.from({ length: 20 }, (_, i) => `run_${i}`);
  assert.deepEqual(shownRuns(null, runs), runs.slice(0, 12));
  assert.deepEqual(shownRuns(null, runs, "RUN_1$"), ["run_1"]);
  assert.deepEqual(shownRuns(null, runs, "("), runs.slice(0, 12));
  assert.deepEqual(shownRuns(["run_19", "gone", "run_3"], runs, "RUN_1$"), ["run_3", "run_19"]);
  assert.deepEqual(shownRuns([], runs), []);
});

test("rows are sorted by any column, and what is absent comes last both ways", () => {
  const rows = rowsOf(
    sent("run_10", { level: "critical", loss: 0.5, values: [["entropy", 0, 1, 10, 4]], hp: [["lr", 0.1], ["on", true]] }),
    sent("__proto__", { loss: null, values: [["entropy", 0, null, 10, 2]], hp: [["lr", 0.01]] }),
    sent("run_2", { level: "note", loss: 2, values: [["entropy", 0, 3, 10, 1]] }),
    sent(HOSTILE),
  );
  const order = (sort) => sorted(rows, sort).map(({ run }) => run);
  assert.deepEqual(order(""), rows.map(({ run }) => run));
  assert.deepEqual(order("up loss"), ["run_10", "run_2", "__proto__", HOSTILE]);
  assert.deepEqual(order("down loss"), ["run_2", "run_10", "__proto__", HOSTILE]);
  assert.deepEqual(order("down last entropy"), ["run_10", "__proto__", "run_2", HOSTILE]);
  assert.deepEqual(order("up change entropy"), ["run_2", "run_10", "__proto__", HOSTILE]); // one has no first value
  assert.equal(order("down verdict")[0], "run_10");
  assert.deepEqual(order("up hp lr").slice(0, 2), ["__proto__", "run_10"]);
  assert.deepEqual(order("up run").slice(-2), ["run_2", "run_10"]);
  assert.deepEqual(["", "up loss", "down loss", "up run"].map((sort) => toggledSort(sort, "loss")), ["up loss", "down loss", "", "up loss"]);
  assert.equal(valueOf(rows[0], "hp on"), true);
  assert.equal(tagOf(rows, "loss"), "loss");
  assert.equal(tagOf(rows, "score"), "");
  assert.equal(tagOf([...rows, { loss: ["train/loss", 1, 2] }], "loss"), null);
  assert.deepEqual(differing(rows), ["lr", "on"]);
  assert.equal(exact(1e-4), "0.0001");
});

test("runs form a group if their seed alone differs", () => {
  const hp = (lr, seed) => [["lr", lr], ...(seed === null ? [] : [["seed", seed]])];
  const groups = seedGroups(rowsOf(
    sent("a", { hp: hp(0.1, 0) }), sent("b", { hp: hp(0.1, 1) }), sent("c", { hp: hp(0.2, 0) }),
    sent("v/version_0", { hp: hp(0.5, null) }), sent("v/version_1", { hp: hp(0.5, null) }), sent("w/version_1", { hp: hp(0.5, null) }),
    sent("x_seed1"), sent("x_seed_2"), sent("y_seed1"), sent("lr_1"), sent("lr_2"), sent("reseed1"), sent("reseed2"),
  ));
  assert.deepEqual(groups.map(({ runs }) => runs), [["a", "b"], ["v/version_0", "v/version_1"], ["x_seed1", "x_seed_2"]]);
  assert.match(groups[0].why, /but for the seed/);
  assert.match(groups[1].why, /names that differ in numbers/);
});

test("a mean is there where all have a value, on a band from the lowest to the highest", () => {
  const mean = meanOf([{ xs: [0, 10, 20, 30], ys: [1, 2, 3, 4] }, { xs: [0, 20, 30], ys: [3, NaN, 0] }]);
  assert.deepEqual(mean.xs, [0, 20, 30]);
  assert.deepEqual([...mean.ys], [2, NaN, 2]);
  assert.deepEqual([[...mean.low], [...mean.high]], [[1, NaN, 0], [3, NaN, 4]]);
  assert.equal(meanOf([{ xs: [0, 10], ys: [1, 2] }, { xs: [5, 10], ys: [1, 2] }]), null);
});

test("axes are linear, logarithmic or of categories, and brushes keep the runs that pass", () => {
  const rows = rowsOf(
    sent("a", { loss: 1, hp: [["lr", 0.001], ["opt", "sgd"], ["same", 1]] }),
    sent("b", { loss: 3, hp: [["lr", 0.1], ["opt", "adamw"], ["same", 1]] }),
    sent("c", { hp: [["lr", 0.01], ["opt", true], ["same", 1]] }),
  );
  const axes = axesOf(rows, ["hp lr", "hp opt", "loss", "score"]);
  assert.deepEqual(axes.map(({ key, kind }) => [key, kind]), [["hp lr", "log"], ["hp opt", "category"], ["loss", "number"]]);
  assert.ok(Math.abs(placeOn(axes[0], 0.01) - 0.5) < 1e-9);
  assert.deepEqual(axes[1].values, ["adamw", "sgd", "true"]);
  assert.equal(placeOn(axes[1], "gone"), null);
  assert.equal(placeOn(axes[2], undefined), null);
  assert.deepEqual(marksOf(axes[0]).map(([, text]) => text), ["0.001", "0.1", "0.01"]);
  const kept = (...brushes) => passing(rows, axes, brushes).map(({ run }) => run);
  assert.deepEqual(kept(), ["a", "b", "c"]);
  assert.deepEqual(kept(["hp lr", 0, 0.6]), ["a", "c"]);
  assert.deepEqual(kept(["hp lr", 0, 0.6], ["loss", 0, 1]), ["a"]); // c has no loss
  assert.deepEqual(kept(["gone", 0, 0]), ["a", "b", "c"]);
  assert.deepEqual(brushed([["a", 0, 1]], "a", [0.8, 0.2]), [["a", 0.2, 0.8]]);
  assert.deepEqual(brushed([["a", 0, 1], ["b", 0, 1]], "a", null), [["b", 0, 1]]);
  assert.deepEqual(moved(undefined, "ArrowUp", false), [0.1, 1]);
  assert.deepEqual(moved([0.1, 1], "ArrowDown", true), [0.1, 0.9]);
  assert.deepEqual(moved([0.5, 0.5], "ArrowUp", false), [0.5, 0.5]); // it does not turn over
  assert.equal(moved(undefined, "Enter", false), null);
  assert.equal(nearestLine([[0, 100], [50, 50], [null, 0]], [0, 10], 5, 48, 10), 0);
  assert.equal(nearestLine([[0, 0]], [0, 10], 5, 90, 10), -1);
});

test("a verdict is told in a few words", () => {
  const finding = { rule: "low", severity: "critical", layers: [3, 4, 5], since_step: 20, until_step: null };
  assert.equal(inShort({ level: "critical", verdict: "", findings: [finding] }), "critical since step 20, layers 3 to 5");
  assert.equal(inShort({ level: "well", verdict: "", findings: [{ ...finding, until_step: 30 }] }), "nothing unusual any more");
  assert.equal(inShort(verdict("unknown")), "not looked for");
});

test("rows that are not complete are asked for again, at once, until nothing comes", async () => {
  const answers = [{ pending: 2 }, { pending: 1 }, { pending: 0 }];
  let asked = 0;
  const rows = new Rows(() => {}, async () => answers[Math.min(asked++, 2)]);
  const request = { metrics: ["entropy"] };
  for (let i = 0; i < 6; i++) {
    rows.get(request);
    await Promise.resolve().then(() => {}).then(() => {});
  }
  assert.deepEqual([rows.get(request), asked], [answers[2], 3]);
  rows.retry();
  rows.get(request);
  assert.equal(asked, 4);
});

test("what is chosen in Runs fits in an address", () => {
  const state = { ...START, view: "runs", shown: ["a&b", HOSTILE, "__proto__"], columns: [], sort: "down change entropy", seeds: "each", picture: "heads", brush: [["hp a=b", 0, 0.5]] };
  assert.deepEqual(decodeState(encode(state)), state);
  assert.deepEqual(decodeState('view=runs&brush=[1]&brush={&brush=["a",0,"1"]&seeds=no&shown='), { ...START, view: "runs", shown: [] });
});
