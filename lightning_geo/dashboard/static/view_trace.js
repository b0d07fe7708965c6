// Trace: the picked heads and layers over all steps, in both runs.

import { TracePanel, readOut } from "./trace_panel.js";
import { el } from "./dom.js";
import { number } from "./format.js";

export class TraceView {
  constructor(app) {
    this.app = app;
    this.readout = el("div", { class: "strip" });
    this.panel = new TracePanel(app, (x, over) => this._read(over, x));
    this.panel.chart.element.title = "Hover for values; click to jump to that step.";
    this.at = null;
    this.layer = el("select", { "aria-label": "layer" });
    this.head = el("select", { "aria-label": "head" });
    const add = el("button", { type: "button", onclick: () => this._add() }, "Pin");
    this.headLabel = el("label", {}, "head ", this.head);
    this.picker = el("div", { class: "picker control" }, el("label", {}, "layer ", this.layer), this.headLabel, add);
    this.element = el("div", { class: "view traces" }, this.picker, this.panel.element, this.readout);
  }

  _add() {
    const cell = { layer: Number(this.layer.value), head: this.head.value === "" ? null : Number(this.head.value) };
    const there = this.app.state.picked.some((p) => p.layer === cell.layer && p.head === cell.head);
    if (!there) this.app.pick(cell.layer, cell.head);
  }

  paint() {
    const { app } = this;
    const a = app.series(app.state.run);
    const b = app.state.other ? app.series(app.state.other) : null;
    const heads = app.spec.axes.includes("head");
    this.headLabel.hidden = !heads;
    fill(this.layer, a.layers, []);
    fill(this.head, heads ? a.heads : 0, [["", "all"]]);
    this.panel.paint([{ series: a, name: app.state.run }, { series: b, name: app.state.other }]);
    if (this.at === null) this._read();
  }

  /** Every line's value at the pointer; without one at the slider's step. */
  _read(over = null, x = null) {
    const { lines } = this.panel;
    if (!lines?.length) return;
    this.at = x;
    const found = readOut(x ?? this.panel.cursor(), lines);
    const pointed = lines[over?.index];
    this.readout.replaceChildren(
      el("b", {}, `${this.panel.fraction ? "fraction" : "step"} ${number(found[0]?.x)} `),
      ...found.map(({ label, colour, value, run }) =>
        el("span", { class: "item", title: run, "aria-current": label === pointed?.label && run === pointed.run && "true" }, el("i", { style: { background: colour } }), `${label}${this.app.state.other ? (run === this.app.state.run ? " A" : " B") : ""} `, el("b", {}, value))),
    );
  }

  canvases() {
    return [this.panel.chart.paper.canvas];
  }

  table() {
    const rows = [["run", "metric", "what", this.panel.fraction ? "fraction of training" : "step", this.app.state.change ? "change" : "value"]];
    for (const line of this.panel.lines) {
      for (let i = 0; i < line.xs.length; i++) rows.push([line.run, this.app.state.metric, line.label, line.xs[i], line.ys[i]]);
    }
    return rows;
  }
}
TraceView.hint = "Heads and layers over all steps";

function fill(select, count, before) {
  const options = [...before, ...Array.from({ length: count }, (_, i) => [String(i), String(i)])];
  if (select.options.length === options.length) return;
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
}
