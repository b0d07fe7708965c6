// Small multiples: a metric's picture in up to twelve runs, on one colour scale. A click opens Evolution of a run.

import { choice, el, refill } from "./dom.js";
import { LEVELS, inShort } from "./findings.js";
import { colourBar } from "./colour_bar.js";
import { Heatmap } from "./heatmap.js";
import { coloursOf, pictureOf } from "./layer_steps.js";
import { apart } from "./names.js";
import { Paper, theme } from "./paper.js";
import { roving } from "./roving.js";
import { difference, frame, nearest } from "./series.js";
import { paintSigns } from "./signs.js";

const MOST = 12;
const NAMED = 22; // letters of a run's name that fit

export class RunsPictures {
  constructor(app) {
    this.app = app;
    this.title = el("h3", {});
    this.what = choice("picture of each run", [
      ["steps", "layers × steps", "Layers from top to bottom, steps from left to right"],
      ["heads", "layers × heads", "Layers from top to bottom, heads from left to right, at the step of the slider"],
    ], (picture) => app.update({ picture }));
    roving(this.what.element, "across");
    this.bar = new Paper("colour scale of all pictures");
    this.bar.element.classList.add("scale");
    this.grid = roving(el("div", { class: "multiples" }), "both");
    this.element = el("section", {}, el("div", { class: "bar-of" }, this.title, el("span", { class: "option control" }, "Picture", this.what.element)),
      el("div", { class: "with-scale" }, this.grid, this.bar.element));
    this.tiles = new Map();
  }

  /** `items` is [{run, series, error, colour, row}]; without a series it is loading, or `error` says why not. */
  paint(items) {
    const { state, spec } = this.app;
    const shown = items.slice(0, MOST);
    const heads = state.picture === "heads";
    this.what.set(state.picture);
    this.title.textContent = `${heads ? `Each run at step ${this.app.series(state.run) ? this.app.step() : ""}` : "Each run over steps"}, one colour scale${items.length > MOST ? `: the first ${MOST} of ${items.length}` : ""}`;
    this._tiles(shown);
    const ready = shown.filter(({ series }) => series);
    for (const item of ready) item.picture = heads ? this._heads(item.series) : { ...pictureOf(item.series, spec, state), steps: item.series.steps };
    const scale = heads
      ? this.app.scale(ready.map(({ series }) => series), ready.map(({ picture }) => picture.values))
      : coloursOf(this.app, ready.map(({ series }) => pictureOf(series, spec, state)));
    for (const item of shown) this._draw(item, scale, heads);
    const context = this.bar.begin();
    if (ready.length) colourBar(context, { top: 8, right: -8, bottom: this.bar.height - 8 }, scale, theme().ink);
  }

  _heads(series) {
    const at = this.app.series(this.app.state.run) ? nearest(series.steps, this.app.step()) : series.steps.length - 1;
    const values = this.app.state.change ? difference(frame(series, at), frame(series, 0)) : frame(series, at);
    return { values, layers: series.layers, samples: series.heads, step: series.steps[at] };
  }

  _tiles(shown) {
    const key = JSON.stringify(shown.map(({ run }) => run));
    if (key === this.key) return;
    this.key = key;
    const names = apart(this.app.index.runs.map(({ run }) => run), NAMED);
    this.tiles = new Map(shown.map(({ run }) => [run, this._tile(run, names.get(run))]));
    refill(this.grid, ...[...this.tiles.values()].map(({ element }) => element));
  }

  _tile(run, short) {
    const map = new Heatmap(`picture of ${run}`);
    const swatch = el("i", {});
    const sign = el("span", { class: "sign", "aria-hidden": "true" });
    const below = el("span", { class: "muted" });
    const element = el("button", { type: "button", class: "multiple", dataset: { key: run }, onclick: () => this._open(run) },
      el("span", { class: "who" }, swatch, sign, el("b", {}, short)), map.element, below);
    return { element, map, swatch, sign, below };
  }

  _open(run) {
    const { state } = this.app;
    this.app.update({ run, view: "evolution", finding: "", ...(run === state.other ? { other: state.run } : {}) });
  }

  _draw({ run, series, error, picture, colour, row }, scale, heads) {
    const { element, map, swatch, sign, below } = this.tiles.get(run);
    const level = row?.verdict?.level ?? "unknown";
    swatch.style.background = colour.swatch;
    swatch.style.outline = `2px ${colour.dashed ? "dashed" : "solid"} ${colour.line}`;
    sign.textContent = row?.verdict ? LEVELS[level].sign : "";
    sign.dataset.level = level;
    const verdict = row?.verdict ? `, ${inShort(row.verdict)}` : "";
    element.title = `${run}${verdict}\nClick to open Evolution.`;
    element.setAttribute("aria-label", `${run}${verdict}. Open Evolution.`);
    map.element.style.visibility = series ? "visible" : "hidden";
    if (!series) {
      below.textContent = error ? "not in this run" : "loading…";
      below.title = error;
      return;
    }
    const { steps } = series;
    below.textContent = heads ? `step ${picture.step}` : `steps ${steps[0]} to ${steps[steps.length - 1]}`;
    map.draw({ values: picture.values, rows: picture.layers, cols: picture.samples, scale, small: true, steps: heads ? null : steps, exists: heads ? this.app.exists(run) : null });
    paintSigns(map, picture.values, scale);
  }

  canvases() {
    return [...[...this.tiles.values()].map(({ map }) => map.paper.canvas), this.bar.canvas];
  }
}
