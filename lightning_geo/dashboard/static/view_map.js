// Map: every layer and head of a metric at one step.

import { pickColour, TracePanel } from "./trace_panel.js";
import { CellCursor } from "./cell_cursor.js";
import { el } from "./dom.js";
import { LEVELS, cellsOf, span, title } from "./findings.js";
import { number, signed, withUnit } from "./format.js";
import { Heatmap } from "./heatmap.js";
import { Inspector } from "./inspector.js";
import { LayerSteps, coloursOf, pictureOf } from "./layer_steps.js";
import { placeSteps } from "./map_layout.js";
import { theme } from "./paper.js";
import { paintSigns } from "./signs.js";
import { difference, frame, trace } from "./series.js";
import { summaryOf } from "./state.js";
import { Tooltip } from "./tooltip.js";

export class MapView {
  constructor(app) {
    this.app = app;
    this.heatmap = new Heatmap("layer by head picture");
    this.readout = el("div", { class: "readout" });
    this.panel = new TracePanel(app, undefined, "Click a head to see where it looks, or a layer number to pin it.");
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
    this.tooltip = new Tooltip(this.board);
    this.inspector = new Inspector(app, () => this._close());
    element.addEventListener("mousemove", (event) => this._hover(this.heatmap.hit(event), event));
    element.addEventListener("mouseleave", () => this._hover(null));
    element.addEventListener("click", (event) => this._open(this.heatmap.hit(event)));
    this.element.addEventListener("keydown", (event) => event.key === "Escape" && this._close());
    this.cursor = new CellCursor(this.heatmap, {
      label: "map of layers and heads", voice: app.voice,
      onmove: (cell) => {
        this._hover(cell);
        return this._told(cell).join(" ");
      },
      onpick: (cell) => {
        this.entering = true; // by keyboard: the focus goes along
        this._open(cell);
      },
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
    const inspected = this._inspected();
    const right = inspected ? this.inspector.element : this.side;
    if (this.element.lastChild !== right) this.element.lastChild.replaceWith(right);
    placeSteps(this, series);
    const scale = app.scale([series], [this.shown]);
    this.heatmap.draw({
      values: this.shown,
      rows: series.layers,
      cols: series.heads,
      scale,
      exists: app.exists(),
      title: `${app.state.metric}${app.state.change ? ", change since the first sample" : ""}, step ${series.steps[sample]}`,
      outlined: finding && cellsOf(finding, series.layers, series.heads),
      marks: [...app.state.picked.map(({ layer, head }, i) => ({ row: layer, col: head, colour: pickColour(i) })), ...(inspected ? [{ row: inspected.layer, col: app.spec.axes.includes("head") ? inspected.head : null, colour: theme().mark }] : [])],
    });
    paintSigns(this.heatmap, this.shown, scale);
    this.cursor.place();
    this._steps(series);
    if (inspected) return this._inspect(inspected);
    const other = app.state.other ? app.series(app.state.other) : null;
    this.panel.paint([{ series, name: app.state.run }, { series: other, name: app.state.other }]);
    this._read();
  }

  /** The head in the drawer, as far as the model has it. */
  _inspected() {
    const { inspected } = this.app.state;
    const heads = this.app.headsOf();
    return inspected && heads && !(inspected.head < heads[inspected.layer]) ? null : inspected;
  }

  _inspect(cell) {
    this.inspector.paint(cell);
    if (this.entering) this.inspector.title.focus();
    this.entering = false;
  }

  /** A head opens the drawer; a layer, or a metric's cell that is of no head, is pinned. */
  _open(cell) {
    const { app } = this;
    const exists = app.exists();
    if (!cell || cell.col === null || !app.spec.axes.includes("head")) app.pickCell(cell);
    else if (!exists || exists(cell.row, cell.col)) app.update({ inspected: { layer: cell.row, head: cell.col } });
  }

  _close() {
    if (!this.app.state.inspected) return;
    if (this.inspector.element.contains(document.activeElement)) this.heatmap.element.focus();
    this.app.update({ inspected: null });
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

  _hover(cell, pointer = null) {
    this._tip(pointer && cell, pointer);
    if (cell?.row === this.over?.row && cell?.col === this.over?.col) return;
    this.over = cell;
    this._read();
  }

  /** The tooltip of a cell at the pointer. */
  _tip(cell, pointer) {
    const series = cell && this.app.series(this.app.state.run);
    if (!series) return this.tooltip.hide();
    const head = this.app.spec.axes.includes("head") ? cell.col : null;
    const ys = trace(series, cell.row, head, summaryOf(this.app.state, this.app.spec));
    this.tooltip.show(pointer, this._told(cell), { xs: series.steps, ys, at: this.app.sample() });
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
    return [this.heatmap.paper.canvas, this.steps.heatmap.paper.canvas, this.panel.chart.paper.canvas, ...this.inspector.canvases()];
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
