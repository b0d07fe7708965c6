// Overview: all families at one step, small.

import { el } from "./dom.js";
import { Heatmap } from "./heatmap.js";
import { number } from "./format.js";
import { roving } from "./roving.js";
import { difference, extent, frame, nearest } from "./series.js";

const EACH = 8 * 2 ** 20; // bytes of a metric: of a long run of a large model fewer samples are fetched here

export class OverviewView {
  constructor(app) {
    this.app = app;
    this.all = false;
    this.more = el("button", { type: "button", class: "control", onclick: () => {
      this.all = !this.all;
      app.schedule();
    } });
    this.grid = roving(el("div", { class: "grid" }), "both");
    this.element = el("div", { class: "view overview" }, this.grid);
    this.tiles = new Map();
  }

  heading() {
    return [el("h2", {}, "All families"), el("span", { class: "muted" }, "Colours of each picture span its own values. Click one to open it.")];
  }

  caption() {
    return `all families, ${this.app.state.run}, step ${this.app.step()}`;
  }

  paint() {
    const { app } = this;
    const names = app.metricNames();
    const specs = app.index.metrics.filter((spec) => names.includes(spec.name) && (this.all || spec.headline));
    this.specs = specs.length ? specs : app.index.metrics.filter((spec) => names.includes(spec.name));
    const key = JSON.stringify([app.state.run, app.state.stack, this.specs.map(({ name }) => name)]);
    if (key !== this.key) this._build();
    this.key = key;
    this.shown = [];
    for (const spec of this.specs) this._tile(spec);
  }

  _build() {
    this.tiles = new Map(this.specs.map((spec) => [spec.name, this._make(spec)]));
    const families = [...new Set(this.specs.map(({ family }) => family))];
    this.more.textContent = this.all ? "Headline metrics only" : "All metrics";
    this.grid.replaceChildren(
      ...families.map((family) => el("section", {}, el("h3", {}, family), el("div", { class: "tiles" },
        ...this.specs.filter((spec) => spec.family === family).map((spec) => this.tiles.get(spec.name).element)))),
      this.more);
  }

  _make(spec) {
    const heatmap = new Heatmap(spec.name);
    const ends = el("div", { class: "muted" });
    const element = el("button", { type: "button", class: "tile", title: `${spec.meaning}\nClick to open the map.`, onclick: () => this.app.update({ metric: spec.name, view: "map" }) },
      el("b", {}, spec.name), heatmap.element, ends);
    return { element, heatmap, ends };
  }

  _tile(spec) {
    const { app } = this;
    const tile = this.tiles.get(spec.name);
    const series = app.series(app.state.run, spec.name, app.samplesOf(app.state.run, EACH));
    if (!series) {
      tile.ends.textContent = "loading…";
      return;
    }
    const sample = nearest(series.steps, app.step());
    const values = app.state.change ? difference(frame(series, sample), frame(series, 0)) : frame(series, sample);
    tile.heatmap.draw({
      values, rows: series.layers, cols: series.heads, scale: app.scale([series], [values], spec), small: true, exists: app.exists(app.state.run, spec),
    });
    const [low, high] = extent(values) ?? [NaN, NaN];
    tile.ends.textContent = Number.isFinite(low) ? `${number(low)} to ${number(high)}` : "absent at this step";
    this.shown.push({ spec, series, sample, values });
  }

  canvases() {
    return [...this.tiles.values()].map(({ heatmap }) => heatmap.paper.canvas);
  }

  table() {
    const rows = [["run", "metric", "step", "layer", "head", this.app.state.change ? "change" : "value"]];
    for (const { spec, series, sample, values } of this.shown) {
      for (let i = 0; i < values.length; i++) {
        rows.push([this.app.state.run, spec.name, series.steps[sample], Math.floor(i / series.heads), spec.axes.includes("head") ? i % series.heads : "", values[i]]);
      }
    }
    return rows;
  }
}
OverviewView.hint = "All families at one step";
