// Compare: a metric in run A, in run B, and what sets them apart.

import { TracePanel, cellName, pickColour } from "./trace_panel.js";
import { CellCursor } from "./cell_cursor.js";
import { outcome } from "./curves.js";
import { el, refill } from "./dom.js";
import { number, signed, withUnit } from "./format.js";
import { Heatmap, roomOf } from "./heatmap.js";
import { roving } from "./roving.js";
import { colours } from "./scales.js";
import { across, aligned, difference, frame, largest } from "./series.js";
import { paintSigns } from "./signs.js";
import { spreadOf } from "./spread.js";

const LISTED = 10;
const MAPS = 0.5; // of the height, at most
const NAMES = ["run A", "run B", "run B minus run A"];

export class CompareView {
  constructor(app) {
    this.app = app;
    this.maps = NAMES.map((name) => new Heatmap(`layer by head picture of ${name}`));
    this.readout = el("div", { class: "strip" });
    this.rows = roving(el("tbody", {}), "down");
    this.column = el("th", {}, "head");
    const table = el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "layer"), this.column, ...["A", "B", "B − A"].map((name) => el("th", {}, name)))), this.rows);
    this.panel = new TracePanel(app);
    this.maps3 = el("div", { class: "maps" }, ...this.maps.map((map) => map.element));
    this.below = el("div", { class: "below" }, el("div", { class: "list" }, el("h3", {}, "Largest differences at this step"), table), this.panel.element);
    this.outcome = el("div", { class: "outcome", role: "status" });
    this.element = el("div", { class: "view compare" }, this.outcome, this.maps3, this.readout, this.below);
    for (const map of this.maps) {
      map.element.addEventListener("mousemove", (event) => this._hover(map.hit(event)));
      map.element.addEventListener("mouseleave", () => this._hover(null));
      map.element.addEventListener("click", (event) => app.pickCell(map.hit(event)));
    }
    this.cursors = this.maps.map((map, at) => new CellCursor(map, {
      label: `map of layers and heads of ${NAMES[at]}`, voice: app.voice,
      onmove: (cell) => {
        this._hover(cell);
        return cell && this.shown ? this._told(cell).join(" ") : "";
      },
      onpick: (cell) => app.pickCell(cell),
    }));
    this.over = null;
  }

  notice() {
    const { app } = this;
    if (!app.state.other) return app.index.runs.length > 1 ? "Select a run B in the sidebar." : "Only one run found. Comparing needs a second one.";
    const [probeA, probeB] = [app.runMetadata(app.state.run)?.probe_fingerprint, app.runMetadata(app.state.other)?.probe_fingerprint];
    if (probeA && probeB && probeA !== probeB) return "The two runs were measured on different inputs (probes): part of the difference is that of the inputs.";
    const [a, b] = [app.series(app.state.run), app.series(app.state.other)];
    if (a && b && (a.layers !== b.layers || a.heads !== b.heads)) {
      // they are compared all the same
      return `The models differ: A has ${a.layers} × ${a.heads} cells, B ${b.layers} × ${b.heads}. What only one of them has is hatched.`;
    }
    if (a && b && this.shown && app.state.align === "step") {
      const spacing = a.steps.length > 1 ? (a.steps[a.steps.length - 1] - a.steps[0]) / (a.steps.length - 1) : Infinity;
      if (Math.abs(this.shown.stepA - this.shown.stepB) > spacing) return `Run B has no sample near step ${this.shown.stepA}: shown is its step ${this.shown.stepB}. Align by fraction compares runs of different lengths.`;
    }
    return "";
  }

  paint() {
    const { app } = this;
    const a = app.series(app.state.run);
    const b = app.state.other ? app.series(app.state.other) : null;
    this._outcome();
    this.below.hidden = this.readout.hidden = this.maps3.hidden = !b;
    this.shown = null;
    if (!b) return;
    const [i, j] = [app.sample(), aligned(a.steps, b.steps, app.step(), app.state.align)];
    const valuesOf = (series, at) => (app.state.change ? difference(frame(series, at), frame(series, 0)) : frame(series, at));
    const [valuesA, valuesB] = [valuesOf(a, i), valuesOf(b, j)];
    const apart = across(a, valuesA, b, valuesB);
    this._share(Math.max(a.layers, b.layers), Math.max(a.heads, b.heads));
    this.shown = { a, b, valuesA, valuesB, apart, stepA: a.steps[i], stepB: b.steps[j] };
    const both = app.scale([a, b], [valuesA, valuesB]);
    const marks = app.state.picked.map(({ layer, head }, at) => ({ row: layer, col: head, colour: pickColour(at) }));
    const what = app.state.change ? "change in " : "";
    this._map(0, a, valuesA, both, `${what}A, step ${a.steps[i]}`, marks, app.exists());
    this._map(1, b, valuesB, both, `${what}B, step ${b.steps[j]}`, marks, app.exists(app.state.other));
    this._map(2, apart, apart.values, this._colours(a, b, apart), "B − A", marks, a.layers === b.layers && a.heads === b.heads ? app.exists() : null);
    this._list(apart);
    this.panel.paint([{ series: a, name: app.state.run }, { series: b, name: app.state.other }]);
    this._read();
  }

  /** The maps take no more of the height than they fill. */
  _share(layers, heads) {
    const { clientWidth: width, clientHeight: height } = this.element;
    const most = Math.round(Math.min(roomOf(layers, heads, width / 3, Infinity).height, MAPS * height));
    if (most === this.most) return;
    this.most = most;
    this.element.style.gridTemplateRows = `auto minmax(150px, ${most}px) auto minmax(150px, 1fr)`;
  }

  /** How the two runs ended, before how their geometry differs. */
  _outcome() {
    const { strip, state } = this.app;
    const [a, b] = [state.run, state.other].map((run) => run && strip.of(run)?.curves);
    const found = a && b ? outcome(a, b) : [];
    const text = found.join("; ");
    if (text === this.ended) return;
    this.ended = text;
    this.outcome.replaceChildren(...(text ? [el("b", {}, "Outcome, A against B: "), text] : []));
  }

  /** The colours of the difference: over all steps unless they follow the step, so that playing compares. */
  _colours(a, b, apart) {
    const { state } = this.app;
    if (state.range === "step") return colours(spreadOf(apart.values), true);
    const key = [state.align, state.change].join();
    if (this.reach?.a !== a || this.reach.b !== b || this.reach.key !== key) {
      const all = new Float32Array(a.steps.length * apart.values.length);
      a.steps.forEach((step, i) => {
        const j = aligned(a.steps, b.steps, step, state.align);
        const at = (series, sample) => (state.change ? difference(frame(series, sample), frame(series, 0)) : frame(series, sample));
        all.set(across(a, at(a, i), b, at(b, j)).values, i * apart.values.length);
      });
      this.reach = { a, b, key, spread: spreadOf(all) };
    }
    return colours(this.reach.spread, true, null, state.range === "full");
  }

  _map(at, series, values, colours, title, marks, exists) {
    this.maps[at].draw({ values, rows: series.layers, cols: series.heads, scale: colours, title, marks, exists });
    paintSigns(this.maps[at], values, colours);
    this.cursors[at].place();
  }

  _list(apart) {
    const { app } = this;
    const { a, b, valuesA, valuesB } = this.shown;
    const heads = app.spec.axes.includes("head");
    this.column.textContent = heads ? "head" : "";
    const rows = largest(apart.values, apart.heads, LISTED).map(({ layer, head, value }) => {
      const cell = { layer, head: heads ? head : null };
      const picked = app.state.picked.findIndex((p) => p.layer === cell.layer && p.head === cell.head);
      const numbers = [number(valuesA[layer * a.heads + head]), number(valuesB[layer * b.heads + head]), signed(value)];
      const jump = el("button", { type: "button", title: `Pin ${cellName(cell)}`, "aria-pressed": String(picked >= 0), dataset: { key: cellName(cell) }, onclick: () => app.pick(cell.layer, cell.head) }, String(layer));
      if (picked >= 0) jump.style.boxShadow = `inset 4px 0 ${pickColour(picked)}`;
      return el("tr", { onclick: (event) => event.target.closest("button") || app.pick(cell.layer, cell.head) },
        el("td", {}, jump), ...[heads ? String(head) : "", ...numbers].map((text) => el("td", {}, text)));
    });
    refill(this.rows, ...rows);
  }

  _hover(cell) {
    if (cell?.row === this.over?.row && cell?.col === this.over?.col) return;
    this.over = cell;
    if (this.shown) this._read();
  }

  /** What there is to say of a cell, otherwise of the whole models. */
  _told(over) {
    const { app } = this;
    const { a, b, valuesA, valuesB } = this.shown;
    const value = (series, values) => app.summary({ ...series, values }, 0, over);
    const [x, y] = [value(a, valuesA), value(b, valuesB)];
    const where = !over ? "Whole model" : cellName({ layer: over.row, head: app.spec.axes.includes("head") ? over.col : null });
    return [where, `A ${withUnit(number(x), app.spec.unit)}, B ${withUnit(number(y), app.spec.unit)}, B − A ${signed(y - x)}`];
  }

  _read() {
    const { over } = this;
    const [where, values] = this._told(over);
    this.readout.replaceChildren(el("b", {}, where), ` ${values}`, el("span", { class: "muted" }, over ? ` ${this.app.module(over.row)}` : ""));
  }

  canvases() {
    return [...this.maps, this.panel.chart].map(({ paper }) => paper.canvas);
  }

  table() {
    const { app } = this;
    const rows = [["metric", "layer", "head", `A: ${app.state.run}, step ${this.shown?.stepA}`, `B: ${app.state.other}, step ${this.shown?.stepB}`, "B - A"]];
    if (!this.shown) return rows;
    const { a, b, valuesA, valuesB, apart } = this.shown;
    const at = (series, values, layer, head) => (layer < series.layers && head < series.heads ? values[layer * series.heads + head] : NaN);
    for (let layer = 0; layer < apart.layers; layer++) {
      for (let head = 0; head < apart.heads; head++) {
        rows.push([app.state.metric, layer, head, at(a, valuesA, layer, head), at(b, valuesB, layer, head), apart.values[layer * apart.heads + head]]);
      }
    }
    return rows;
  }
}
CompareView.hint = "A metric in two runs, and where they differ most";
