// Overview: every metric at one step, small, what is unusual first.

import { choice, el, refill } from "./dom.js";
import { byMetric, movement, unusualFirst } from "./findings.js";
import { roving } from "./roving.js";
import { aligned, difference, frame, nearest } from "./series.js";
import { Tile } from "./tile.js";

const EACH = 8 * 2 ** 20; // bytes of a metric: of a long run of a large model fewer samples are fetched here

export class OverviewView {
  constructor(app) {
    this.app = app;
    this.all = false;
    this.family = "";
    this.more = el("button", { type: "button", class: "control", onclick: () => {
      this.all = !this.all;
      app.schedule();
    } });
    this.chips = roving(el("div", { class: "chips control" }), "across");
    this.grid = roving(el("div", { class: "tiles" }), "both");
    this.element = el("div", { class: "view overview" }, this.chips, this.grid);
    this.tiles = new Map();
  }

  heading() {
    return [el("h2", {}, "All metrics at one step"), el("span", { class: "muted" }, "Findings first, then the largest change of a layer. Line: the model over the run; band: its layers. Each map has its own colour scale. Click a tile to open it.")];
  }

  caption() {
    return `all families, ${this.app.state.run}, step ${this.app.step()}`;
  }

  paint() {
    const { app } = this;
    const names = app.metricNames();
    const known = app.index.metrics.filter((spec) => names.includes(spec.name));
    const headline = known.filter((spec) => spec.headline);
    this.specs = this.all || !headline.length ? known : headline;
    const key = JSON.stringify([app.state.run, app.state.stack, this.specs.map(({ name }) => name)]);
    if (key !== this.key) this._build(headline.length > 0 && headline.length < known.length);
    this.key = key;
    this.shown = [];
    this.failed = 0;
    const found = app.findings(app.state.run);
    const findings = byMetric(found?.findings ?? [], app.state.stack);
    for (const spec of this.specs) {
      this.tiles.get(spec.name).mark(findings.get(spec.name) ?? null);
      this._tile(spec);
    }
    this._order(findings, found !== null);
  }

  _build(more) {
    this.tiles = new Map(this.specs.map((spec) => [spec.name, new Tile(spec, () => this.app.update({ metric: spec.name, view: "map" }))]));
    this.ordered = "";
    this.settled = false;
    const families = [...new Set(this.specs.map(({ family }) => family))];
    if (!families.includes(this.family)) this.family = "";
    const filter = choice("family", [["", "All families"], ...families.map((family) => [family, family])], (family) => {
      this.family = family;
      this.app.schedule();
    });
    this.filter = filter;
    this.more.textContent = this.all ? "Headline metrics only" : "All metrics";
    refill(this.chips, filter.element, ...(more ? [this.more] : []));
  }

  /** Once all are here: tiles that change their places while one looks at them help nobody. */
  _order(findings, known) {
    this.filter.set(this.family);
    const settled = this.shown.length + this.failed === this.specs.length && known;
    if (settled && !this.settled) {
      const absent = this.specs.map(({ name }) => name).filter((name) => !this.shown.some(({ spec }) => spec.name === name));
      this.names = [...unusualFirst(this.shown.map(({ spec, series }) => ({ name: spec.name, finding: findings.get(spec.name), share: movement(spec, series).layerShare }))), ...absent];
    } else if (!this.settled) this.names = this.specs.map(({ name }) => name);
    this.settled ||= settled;
    const shown = this.names.filter((name) => !this.family || this.tiles.get(name).spec.family === this.family);
    const key = shown.join();
    if (key !== this.ordered) refill(this.grid, ...shown.map((name) => this.tiles.get(name).element));
    if (key !== this.ordered) this.app.schedule(); // to draw what had no size before
    this.ordered = key;
  }

  _tile(spec) {
    const { app } = this;
    const { run, other, change, align } = app.state;
    const tile = this.tiles.get(spec.name);
    const of = (name) => app.series(name, spec.name, app.samplesOf(name, EACH));
    const series = of(run);
    if (!series) {
      const error = app.error(run, spec.name, app.samplesOf(run, EACH));
      this.failed += Boolean(error);
      return tile.absent(error);
    }
    const at = (found, sample) => ({ series: found, sample, values: change ? difference(frame(found, sample), frame(found, 0)) : frame(found, sample) });
    const runs = [at(series, nearest(series.steps, app.step()))];
    const second = other ? of(other) : null;
    if (second) runs.push(at(second, aligned(series.steps, second.steps, app.step(), align)));
    const scale = app.scale(runs.map((shown) => shown.series), runs.map(({ values }) => values), spec);
    tile.paint(runs.map((shown, i) => ({ ...shown, scale, exists: app.exists(i ? other : run, spec) })));
    this.shown.push({ spec, ...runs[0] });
  }

  canvases() {
    return [...this.tiles.values()].flatMap((tile) => tile.canvases());
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
OverviewView.hint = "Every metric at one step, what is unusual first";
