// A card of one finding: what happened, where, since when, how it shows, why it may be, and what to do.

import { el } from "./dom.js";
import { LEVELS, cellsOf, evidence, keyOf, meanOver, span, title } from "./findings.js";
import { Heatmap } from "./heatmap.js";
import { colours } from "./scales.js";
import { frame, nearest } from "./series.js";
import { Sparkline } from "./sparkline.js";

const EACH = 8 * 2 ** 20; // bytes of a metric, as in Overview

export class FindingCard {
  constructor(app, finding, drawn, onshow) {
    this.app = app;
    this.finding = finding;
    const { sign, word } = LEVELS[finding.severity];
    this.line = new Sparkline(`${finding.metric} over the run`);
    this.map = new Heatmap(`map of ${finding.metric} with the cells framed`);
    this.lineText = el("figcaption", {});
    this.mapText = el("figcaption", {});
    this.pictures = el("div", { class: "pictures2", hidden: true },
      el("figure", {}, this.line.element, this.lineText), el("figure", {}, this.map.element, this.mapText));
    const several = app.index.runs.some(({ monitors }) => monitors.some(({ stacks }) => stacks.length > 1));
    const row = (name, text) => (text ? [el("dt", {}, name), el("dd", {}, text)] : []);
    this.element = el("article", { class: "card", dataset: { level: finding.severity, ended: String(finding.until_step !== null) } },
      el("header", {},
        el("span", { class: "badge" }, `${sign} ${word}`), el("b", {}, title(finding.rule)),
        el("span", { class: "muted" }, `${span(finding)}${several ? `, in ${finding.stack}` : ""}`),
        el("button", { type: "button", class: "show control", dataset: { key: keyOf(finding) }, title: `Open the map at step ${finding.since_step} with these cells framed`, onclick: onshow }, "Show me")),
      el("p", { class: "text" }, finding.message),
      el("dl", {}, ...row("Evidence", evidence(finding)), ...row("Usual causes", finding.causes.join("; ")), ...row("Next", finding.next.join(" "))),
      drawn && finding.metric ? this.pictures : null);
  }

  /** Draws the metric over the run and its map, as soon as they are here. */
  paint(run) {
    const { app, finding } = this;
    const series = finding.metric ? app.series(run, finding.metric, app.samplesOf(run, EACH), finding.stack) : null;
    this.pictures.hidden = !series;
    if (!series) return;
    const mask = cellsOf(finding, series.layers, series.heads);
    if (series !== this.series) {
      this.mean = meanOver(series, mask);
    }
    this.series = series;
    this.line.draw({ xs: series.steps, ys: this.mean, usual: finding.usual, since: finding.since_step, until: finding.until_step });
    const sample = this._sample(series);
    const spec = app.index.metrics.find(({ name }) => name === finding.metric);
    const from = spec?.log_from ?? null;
    this.map.draw({ values: frame(series, sample), rows: series.layers, cols: series.heads, scale: colours(app.scales.spread(series.values, from), spec?.signed, from), outlined: mask, small: true });
    const heads = finding.heads.length;
    const framed = heads ? `head${heads === 1 ? "" : "s"}` : `layer${finding.layers.length === 1 ? "" : "s"}`;
    this.lineText.textContent = `mean of the ${heads > 1 ? `${heads} ` : ""}framed ${framed}`;
    this.mapText.textContent = `${series.heads > 1 ? "layers × heads" : "layers"}, step ${series.steps[sample]}`;
  }

  /** The last sample that showed it. */
  _sample(series) {
    const { until_step: until } = this.finding;
    const last = series.steps.length - 1;
    if (until === null) return last;
    const at = nearest(series.steps, until);
    return Math.max(0, series.steps[at] >= until ? at - 1 : at);
  }

  canvases() {
    return this.pictures.hidden ? [] : [this.line.paper.canvas, this.map.paper.canvas];
  }
}
