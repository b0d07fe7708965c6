// Map: every layer and head of a metric at one step.

import { pickColour, TracePanel } from "./trace_panel.js";
import { CellCursor } from "./cell_cursor.js";
import { el } from "./dom.js";
import { LEVELS, cellsOf, span, title } from "./findings.js";
import { number, signed, withUnit } from "./format.js";
import { Heatmap, roomOf } from "./heatmap.js";
import { LayerSteps, coloursOf, pictureOf } from "./layer_steps.js";
import { paintSigns } from "./signs.js";
import { difference, frame } from "./series.js";
import { summaryOf } from "./state.js";

const GAP = 8; // pixels between the map and the layers over steps
const LOW = 130; // pixels that these need below the map
const NARROW = 280; // and beside it
const TALL = 520; // of the column at the right, for them to stand in it

export class MapView {
  constructor(app) {
    this.app = app;
    this.heatmap = new Heatmap("layer by head picture");
    this.readout = el("div", { class: "readout" });
    this.panel = new TracePanel(app);
    this.marked = el("div", { class: "marked", role: "status" });
    this.steps = new LayerSteps(app, "run A", (told) => {
      this.told = told;
      this._read();
    });
    this.told = [];
    this.board = el("div", { class: "board" }, this.heatmap.element);
    this.side = el("div", { class: "side" }, this.marked, this.readout, this.panel.element);
    this.element = el("div", { class: "view map" }, this.board, this.side);
    const { element } = this.heatmap;
    element.addEventListener("mousemove", (event) => this._hover(this.heatmap.hit(event)));
    element.addEventListener("mouseleave", () => this._hover(null));
    element.addEventListener("click", (event) => app.pickCell(this.heatmap.hit(event)));
    this.cursor = new CellCursor(this.heatmap, {
      label: "map of layers and heads", voice: app.voice,
      onmove: (cell) => {
        this._hover(cell);
        return this._told(cell).join(" ");
      },
      onpick: (cell) => app.pickCell(cell),
    });
    this.over = null;
  }

  paint() {
    const { app } = this;
    const series = app.series(app.state.run);
    if (!series) return;
    const sample = app.sample();
    const values = frame(series, sample);
    this.shown = app.state.change ? difference(values, frame(series, 0)) : values;
    const finding = app.marked();
    this._mark(finding);
    this._place(series);
    const scale = app.scale([series], [this.shown]);
    this.heatmap.draw({
      values: this.shown,
      rows: series.layers,
      cols: series.heads,
      scale,
      exists: app.exists(),
      title: `${app.state.metric}${app.state.change ? ", change since the first sample" : ""}, step ${series.steps[sample]}`,
      outlined: finding && cellsOf(finding, series.layers, series.heads),
      marks: app.state.picked.map(({ layer, head }, i) => ({ row: layer, col: head, colour: pickColour(i) })),
    });
    paintSigns(this.heatmap, this.shown, scale);
    this.cursor.place();
    this._steps(series);
    const other = app.state.other ? app.series(app.state.other) : null;
    this.panel.paint([{ series, name: app.state.run }, { series: other, name: app.state.other }]);
    this._read();
  }

  /** The layers over all steps go where the map leaves room: below, beside, or above the lines. */
  _place({ layers, heads }) {
    const { clientWidth: width, clientHeight: height } = this.board;
    const room = roomOf(layers, heads, width, height);
    const [right, below] = [width - room.width - GAP, height - room.height - GAP];
    let where = this.side.clientHeight >= TALL ? "side" : "none";
    if (below >= LOW && below * width >= right * height) where = "below";
    else if (right >= NARROW) where = "right";
    this.board.dataset.steps = where;
    const { style } = this.heatmap.element;
    style.flex = where === "below" ? `0 0 ${room.height}px` : where === "right" ? `0 0 ${room.width}px` : "1 1 0";
    const { element } = this.steps;
    element.hidden = where === "none";
    if (where === "side" && element.parentElement !== this.side) this.panel.element.before(element);
    else if (where !== "side" && element.parentElement !== this.board) this.board.append(element);
  }

  _steps(series) {
    const { app } = this;
    if (this.steps.element.hidden) return;
    const picture = pictureOf(series, app.spec, app.state);
    const by = summaryOf(app.state, app.spec);
    this.steps.paint(series, picture, coloursOf(app, [picture]), { cursor: app.sample(), title: `layers over steps${app.spec.axes.includes("head") ? `, ${by} of heads` : ""}` });
  }

  /** Says whose cells are framed, and takes the frame away. */
  _mark(finding) {
    const key = finding && JSON.stringify(finding);
    if (key === this.key) return;
    this.key = key;
    this.marked.hidden = !finding;
    if (!finding) return;
    const { sign, word } = LEVELS[finding.severity];
    this.marked.dataset.level = finding.severity;
    this.marked.replaceChildren(
      el("div", { class: "text" }, el("b", {}, `${sign} ${word}: ${title(finding.rule)}`), ` ${span(finding)}. ${finding.message}`),
      el("button", { type: "button", class: "control", title: "Take the frame away", onclick: () => this.app.update({ finding: "" }) }, "Unmark"),
      el("button", { type: "button", class: "control", title: "Back to all findings", onclick: () => this.app.update({ view: "summary" }) }, "Summary"));
  }

  _hover(cell) {
    if (cell?.row === this.over?.row && cell?.col === this.over?.col) return;
    this.over = cell;
    this._read();
  }

  /** What there is to say of a cell, otherwise of the whole model: where it is, its value, its change. */
  _told(over) {
    const { app } = this;
    const series = app.series(app.state.run);
    if (!series) return [];
    const now = app.summary(series, app.sample(), over);
    const start = app.summary(series, 0, over);
    const heads = app.spec.axes.includes("head");
    const where = over ? (over.col === null || !heads ? `Layer ${over.row}` : `Layer ${over.row}, head ${over.col}`) : "Whole model";
    const how = heads && over?.col === null ? ` (${app.spec.summary} of its heads)` : over ? "" : ` (${app.spec.summary})`;
    return [where + how, withUnit(number(now), app.spec.unit), `${signed(now - start)} since step ${series.steps[0]}`];
  }

  /** The read-out. */
  _read() {
    const [where, value, change = ""] = this.told.length ? this.told : this._told(this.over);
    if (!where) return;
    this.readout.replaceChildren(
      el("div", { class: "where" }, where), el("div", { class: "value" }, value), el("div", { class: "muted" }, change),
      el("div", { class: "muted module" }, this.over ? this.app.module(this.over.row) : ""),
    );
  }

  canvases() {
    return [this.heatmap.paper.canvas, this.steps.heatmap.paper.canvas, this.panel.chart.paper.canvas];
  }

  table() {
    const { app } = this;
    const series = app.series(app.state.run);
    const step = series.steps[app.sample()];
    const rows = [["run", "metric", "step", "layer", "head", app.state.change ? "change" : "value"]];
    for (let i = 0; i < this.shown.length; i++) {
      rows.push([app.state.run, app.state.metric, step, Math.floor(i / series.heads), i % series.heads, this.shown[i]]);
    }
    return rows;
  }
}
MapView.hint = "Every layer and head at one step";
