// A metric of many runs over steps: a line each in its colour, or the mean and band of runs that differ in their seed.

import { Chart } from "./chart.js";
import { choice, el } from "./dom.js";
import { number, withUnit } from "./format.js";
import { apart } from "./names.js";
import { roving } from "./roving.js";
import { meanOf } from "./run_rows.js";
import { trace } from "./series.js";
import { summaryOf } from "./state.js";

const NAMED = 20; // letters of a run's name at the end of its line
const MODEL = { mean: "mean over layers and heads", max: "highest of all layers and heads", min: "lowest of all layers and heads", spread: "highest − lowest of all layers and heads" };

export class RunsLines {
  /** `onover(runs)` is called with the runs of the line that is pointed at. */
  constructor(app, onover) {
    this.app = app;
    this.onover = onover;
    this.chart = new Chart("a line over steps for each run");
    this.title = el("h3", {});
    this.seeds = choice("seeds", [
      ["mean", "mean and band", "Runs that differ in their seed alone are one line: their mean, on a band from the lowest to the highest of them"],
      ["each", "each run", "Every run is a line"],
    ], (seeds) => app.update({ seeds }));
    roving(this.seeds.element, "across");
    this.choice = el("span", { class: "option control" }, "Seeds", this.seeds.element);
    this.groups = el("ul", { class: "groups scroll" });
    this.element = el("section", { class: "lines" }, el("div", { class: "bar-of" }, this.title, this.choice), this.chart.element, this.groups);
    this.over = null;
    const hover = (over) => {
      this.over = over;
      this._draw();
      onover(this.lines?.[over?.index]?.runs ?? []);
    };
    this.chart.element.addEventListener("mousemove", (event) => hover(this.chart.near(event)));
    this.chart.element.addEventListener("mouseleave", () => hover(null));
    this.chart.element.addEventListener("click", (event) => {
      const x = this.chart.at(event);
      if (x !== null && app.series(app.state.run)) app.goTo(x);
    });
  }

  /** `items` is [{run, series, colour}], `groups` those of runs that differ in their seed. */
  paint(items, groups, dark) {
    const { state, spec } = this.app;
    const by = summaryOf(state, spec);
    this.title.textContent = `${state.change ? "Change since the start" : "Over steps"}: ${MODEL[by]}`;
    this.seeds.set(state.seeds);
    this.choice.hidden = !groups.length;
    const made = [...items.flatMap(({ run, series, colour }) => [run, series, colour.line]), JSON.stringify(groups), by, state.change, state.seeds, spec, dark];
    if (made.length !== this.made?.length || made.some((part, i) => part !== this.made[i])) this._make(items, groups, by);
    this.made = made;
    this._draw();
  }

  /** Points out the line of runs. */
  mark(runs) {
    const index = this.lines?.findIndex((line) => line.runs.includes(runs[0])) ?? -1;
    if (index === (this.over?.index ?? -1)) return;
    this.over = index < 0 ? null : { index, sample: this.lines[index].ys.findLastIndex(Number.isFinite) };
    this._draw();
  }

  _make(items, groups, by) {
    const { state } = this.app;
    const names = apart(this.app.index.runs.map(({ run }) => run), NAMED);
    const each = new Map(items.map(({ run, series, colour }) => {
      let ys = trace(series, null, null, by);
      if (state.change) ys = ys.map((y) => y - ys[0]);
      return [run, { xs: series.steps, ys, colour: colour.line, dashed: colour.dashed, label: run, end: names.get(run), runs: [run] }];
    }));
    this.told = [];
    if (state.seeds === "mean") for (const group of groups) this._merge(group, each, names);
    this.lines = [...each.values()];
    this.over = null;
    this.groups.replaceChildren(...this.told);
    this.groups.hidden = !this.told.length;
  }

  /** One line in place of those of a group, and a word on it below the chart. */
  _merge({ runs, why }, each, names) {
    const members = runs.map((run) => each.get(run)).filter(Boolean);
    if (members.length < 2) return;
    const mean = meanOf(members);
    const [first] = members;
    const list = members.map(({ label }) => names.get(label)).join(", ");
    this.told.push(el("li", {}, el("i", { style: { background: first.colour } }), el("b", {}, `${members.length} runs`), ` ${mean ? "" : "share no two steps, so each is a line: "}${list} `, el("span", { class: "muted" }, `(${why})`)));
    if (!mean) return;
    for (const { label } of members) each.delete(label);
    const all = members.flatMap((member) => member.runs);
    each.set(all[0], { ...first, ...mean, wide: true, label: `mean of ${all.length} runs`, end: `${first.end} +${all.length - 1}`, runs: all });
  }

  _draw() {
    if (!this.lines) return;
    const { app } = this;
    const cursor = app.series(app.state.run) ? app.step() : null;
    this.chart.draw({ lines: this.lines, cursor, unit: app.spec.unit, over: this.over, text: this._words() });
  }

  /** What is said of the line that is pointed at. */
  _words() {
    const line = this.lines[this.over?.index];
    if (!line) return "";
    const at = this.over.sample;
    const band = line.low ? ` (${number(line.low[at])} to ${number(line.high[at])})` : "";
    return `${line.label}: ${withUnit(number(line.ys[at]), this.app.spec.unit)}${band}, step ${line.xs[at]}`;
  }
}
