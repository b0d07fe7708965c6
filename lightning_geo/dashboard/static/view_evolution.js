// Evolution: layers down, steps to the right. How depth organises over training.

import { el } from "./dom.js";
import { LayerSteps, coloursOf, pictureOf } from "./layer_steps.js";
import { aligned } from "./series.js";
import { summaryOf } from "./state.js";

const HEADS = { mean: "the mean of its heads", min: "its lowest head", max: "its highest head", spread: "its highest head less its lowest" };

export class EvolutionView {
  constructor(app) {
    this.app = app;
    this.readout = el("div", { class: "strip" });
    this.maps = ["run A", "run B"].map((name, at) => new LayerSteps(app, name, (told) => this._read(told), at ? () => {} : undefined));
    this.pictures = el("div", { class: "pictures" }, ...this.maps.map(({ element }) => element));
    this.element = el("div", { class: "view evolution" }, this.pictures, this.readout);
  }

  paint() {
    const { app } = this;
    const { state, spec } = app;
    const runs = [state.run, state.other].filter(Boolean);
    this.shown = runs.map((run) => ({ run, series: app.series(run) })).filter(({ series }) => series);
    for (const shown of this.shown) shown.picture = pictureOf(shown.series, spec, state);
    this.maps[1].element.hidden = this.shown.length < 2;
    const colours = coloursOf(app, this.shown.map(({ picture }) => picture));
    if (!this.maps.some(({ over }) => over)) this._read([]);
    this.shown.forEach(({ run, series, picture }, at) => {
      const cursor = at === 0 ? app.sample() : aligned(this.shown[0].series.steps, series.steps, app.step(), state.align);
      this.maps[at].paint(series, picture, colours, { cursor, title: `${runs.length > 1 ? `${"AB"[at]}: ` : ""}${run}` });
    });
  }

  _read([where, value]) {
    const { spec, state } = this.app;
    const how = spec?.axes.includes("head") ? `Each layer is ${HEADS[summaryOf(state, spec)]}. ` : "";
    this.readout.replaceChildren(...(where ? [el("b", {}, where), ` ${value}`]
      : [el("b", {}, this.app.why()), el("span", { class: "muted" }, ` ${how}One column per sample. Click to go to a step, or on a layer number to pin it.`)]));
  }

  canvases() {
    return this.maps.slice(0, this.shown.length).map(({ heatmap }) => heatmap.paper.canvas);
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
