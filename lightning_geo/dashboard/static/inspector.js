// The drawer of one head: where it looks over the run, its gate, its twin, all its metrics.

import { el, refill } from "./dom.js";
import { number, signed, withUnit } from "./format.js";
import { titleOf } from "./heading.js";
import { PatternRow } from "./pattern_row.js";
import { gateOf, twinAt } from "./patterns.js";
import { nearest, trace } from "./series.js";

const EACH = 2 ** 21; // bytes of a metric: of a long run of a large model fewer samples are fetched here
const NONE = "This run's record has no attention patterns: patterns=False, source=\"batch\", or an earlier version wrote it.";
const NOT_HERE = "No attention pattern of this layer: it attends to another sequence, or its queries have no known place among the keys.";

export class Inspector {
  /** `onclose` is called when the drawer is to close. */
  constructor(app, onclose) {
    this.app = app;
    this.title = el("h3", { tabindex: -1 });
    this.pin = el("button", { type: "button", class: "control", onclick: () => app.pick(this.cell.layer, this.cell.head) });
    this.close = el("button", { type: "button", class: "control close", title: "Close (Esc)", "aria-label": "Close", onclick: onclose }, "×");
    this.module = el("div", { class: "muted module" });
    this.patterns = new PatternRow(app.voice);
    this.patterns.onpoint = () => app.schedule();
    this.message = el("div", { class: "muted", role: "status" });
    this.facts = el("dl", {});
    this.rows = el("tbody", {});
    this.table = el("div", { class: "list" }, el("table", {}, el("thead", {}, el("tr", {}, ...["metric of this head", "value", "change"].map((name) => el("th", { scope: "col" }, name)))), this.rows));
    this.element = el("section", { class: "inspector", role: "region" },
      el("header", {}, this.title, this.pin, this.close), this.module, this.patterns.element, this.message, this.facts, this.table);
  }

  /** Shows a cell {layer, head} at the slider's step. */
  paint(cell) {
    const { app } = this;
    this.cell = cell;
    const name = `Layer ${cell.layer}, head ${cell.head}`;
    this.title.textContent = name;
    this.element.setAttribute("aria-label", name);
    this.module.textContent = app.module(cell.layer);
    const pinned = app.state.picked.some(({ layer, head }) => layer === cell.layer && head === cell.head);
    this.pin.textContent = pinned ? "Unpin" : "Pin";
    this.pin.title = pinned ? "Take its line out of Trace" : "Show it as a line of its own in Trace";
    const got = app.headRecord(app.state.run, cell);
    this._patterns(got);
    const metrics = this._metrics(cell);
    this._facts(got instanceof Error ? null : got, metrics);
    this._table(metrics);
  }

  _patterns(got) {
    const shown = got && !(got instanceof Error) && got.samples.length > 0;
    this.patterns.element.hidden = !shown;
    this.message.hidden = Boolean(shown);
    if (shown) this.patterns.paint(got, this.app.step());
    else this.message.textContent = !got ? "Loading…" : got instanceof Error ? got.message : got.kept ? NOT_HERE : NONE;
  }

  /** Value and change of each metric of heads: [{spec, value, change}], null while one is loading. */
  _metrics({ layer, head }) {
    const { app } = this;
    const { run } = app.state;
    const names = app.metricNames();
    return app.index.metrics.filter((spec) => names.includes(spec.name) && spec.axes.includes("head")).map((spec) => {
      const series = app.series(run, spec.name, app.samplesOf(run, EACH));
      if (!series) return { spec, value: null };
      const values = trace(series, layer, head);
      const value = values[nearest(series.steps, app.step())];
      return { spec, value, change: value - values[0] };
    });
  }

  _facts(got, metrics) {
    const value = (name) => metrics.find(({ spec }) => spec.name === name)?.value;
    const margins = Object.fromEntries(metrics.filter(({ spec }) => spec.base === "gate").map(({ spec, value: margin }) => [spec.part, margin]));
    const gate = gateOf(margins);
    const twin = got && twinAt(got, this.app.step());
    const near = value("redundancy");
    const facts = [];
    if (gate) facts.push(["Gate", gate]);
    if (twin) facts.push(["Nearest twin", `head ${twin.head} (similarity ${number(twin.similarity)}, at step ${twin.step})`]);
    else if (Number.isFinite(near)) facts.push(["Nearest twin", `similarity ${number(near)}; which head is kept at the first and last sample only`]);
    this.facts.replaceChildren(...facts.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
    this.facts.hidden = !facts.length;
  }

  _table(metrics) {
    const { app } = this;
    refill(this.rows, ...metrics.map(({ spec, value, change }) => el("tr", { "aria-current": spec.name === app.state.metric && "true" },
      el("th", { scope: "row" }, el("button", { type: "button", class: "metric", title: `${spec.name}: ${spec.question || spec.meaning}`, dataset: { key: spec.name }, onclick: () => app.update({ metric: spec.name }) }, titleOf(spec))),
      el("td", {}, value === null ? "…" : withUnit(number(value), spec.unit)), el("td", {}, Number.isFinite(change) ? signed(change) : ""))));
  }

  canvases() {
    return this.patterns.canvases();
  }
}
