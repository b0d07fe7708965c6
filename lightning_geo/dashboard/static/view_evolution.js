// Evolution: layers down, steps to the right. How depth organises over training.

import { el } from "./dom.js";
import { number, signed, withUnit } from "./format.js";
import { Heatmap } from "./heatmap.js";
import { pickColour } from "./trace_panel.js";
import { aligned, evolution } from "./series.js";

export class EvolutionView {
  constructor(app) {
    this.app = app;
    this.maps = ["run A", "run B"].map((name) => new Heatmap(`layer by step picture of ${name}`));
    this.readout = el("div", { class: "strip", "aria-live": "polite" });
    this.pictures = el("div", { class: "pictures" }, ...this.maps.map((map) => map.element));
    this.element = el("div", { class: "view evolution" }, this.pictures, this.readout);
    this.made = new WeakMap();
    this.maps.forEach((map, at) => {
      map.element.addEventListener("mousemove", (event) => this._read(at, map.hit(event)));
      map.element.addEventListener("mouseleave", () => this._read(at, null));
      map.element.addEventListener("click", (event) => this._click(at, map.hit(event)));
    });
  }

  _click(at, cell) {
    if (!cell) return;
    if (cell.col === null) this.app.pick(cell.row, null);
    else if (at === 0) this.app.goTo(this.shown[0].series.steps[cell.col]);
  }

  _picture(series) {
    const { state, spec } = this.app;
    const key = `${state.change}`;
    const made = this.made.get(series);
    if (made?.key === key) return made.picture;
    const picture = evolution(series, spec.summary);
    if (state.change) {
      for (let layer = 0; layer < picture.layers; layer++) {
        const row = picture.values.subarray(layer * picture.samples, (layer + 1) * picture.samples);
        const [first] = row;
        for (let i = 0; i < row.length; i++) row[i] -= first;
      }
    }
    this.made.set(series, { key, picture });
    return picture;
  }

  paint() {
    const { app } = this;
    const { state } = app;
    const runs = [state.run, state.other].filter(Boolean);
    this.shown = runs.map((run) => ({ run, series: app.series(run) })).filter(({ series }) => series);
    for (const shown of this.shown) shown.picture = this._picture(shown.series);
    this.maps[1].element.hidden = this.shown.length < 2;
    // in its own colours: means of layers reach less far than heads do
    const colours = app.scaleOf(this.shown.map(({ picture }) => picture.values));
    this.shown.forEach(({ run, series, picture }, at) => {
      const cursor = at === 0 ? app.sample() : aligned(this.shown[0].series.steps, series.steps, app.step(), state.align);
      this.maps[at].draw({
        values: picture.values, rows: picture.layers, cols: picture.samples, scale: colours, steps: series.steps, cursor,
        title: `${runs.length > 1 ? `${at ? "B" : "A"}: ` : ""}${run}`,
        marks: state.picked.filter(({ head }) => head === null).map(({ layer }) => ({ row: layer, col: null, colour: pickColour(state.picked.findIndex((p) => p.layer === layer && p.head === null)) })),
      });
    });
    this._read(0, null);
  }

  _read(at, cell) {
    const shown = this.shown?.[at];
    const { spec, state } = this.app;
    if (!cell || cell.col === null || !shown) {
      const how = spec?.axes.includes("head") ? `Each layer is the ${spec.summary} of its heads. ` : "";
      this.readout.replaceChildren(el("span", { class: "muted" }, `${how}One column per sample. Click to go to a step, or on a layer's number to follow it.`));
      return;
    }
    const value = shown.picture.values[cell.row * shown.picture.samples + cell.col];
    this.readout.replaceChildren(
      el("b", {}, `layer ${cell.row}, step ${shown.series.steps[cell.col]} `),
      withUnit(state.change ? signed(value) : number(value), spec.unit),
    );
  }

  canvases() {
    return this.maps.slice(0, this.shown.length).map(({ paper }) => paper.canvas);
  }

  table() {
    const rows = [["run", "metric", "step", "layer", this.app.state.change ? "change" : "value"]];
    for (const { run, series, picture } of this.shown) {
      for (let i = 0; i < picture.values.length; i++) {
        rows.push([run, this.app.state.metric, series.steps[i % picture.samples], Math.floor(i / picture.samples), picture.values[i]]);
      }
    }
    return rows;
  }
}
EvolutionView.hint = "Every layer over all steps as one picture";
