// A metric in Overview: its map, its course over the run, where it began and has come to.

import { el } from "./dom.js";
import { LEVELS, title } from "./findings.js";
import { middle, number } from "./format.js";
import { titleOf } from "./heading.js";
import { Heatmap } from "./heatmap.js";
import { Paper, theme } from "./paper.js";
import { extent, trace } from "./series.js";
import { paintSigns } from "./signs.js";
import { Stencil } from "./stencil.js";

const COLUMNS = 120; // of the picture of a course
const courses = new WeakMap(); // by series

/** The model's number at each sample (`whole`), and in so many columns with the lowest and highest layer: `mean`, `low`, `high`. */
export function courseOf(series, by, columns = COLUMNS) {
  if (courses.get(series)?.by === by) return courses.get(series);
  const count = series.steps.length;
  const width = Math.min(columns, count);
  const whole = trace(series, null, null, by);
  const layers = Array.from({ length: series.layers }, (_, layer) => trace(series, layer, null, by));
  const course = { by, whole, mean: new Float64Array(width), low: new Float64Array(width), high: new Float64Array(width) };
  for (let column = 0; column < width; column++) {
    const [from, to] = [column, column + 1].map((edge) => Math.floor((edge * count) / width));
    const ends = layers.map((values) => extent(values.subarray(from, to))).filter(Boolean);
    course.mean[column] = whole[to - 1];
    course.low[column] = ends.length ? Math.min(...ends.map(([low]) => low)) : NaN;
    course.high[column] = ends.length ? Math.max(...ends.map(([, high]) => high)) : NaN;
  }
  courses.set(series, course);
  return course;
}

export class Tile {
  constructor(spec, onopen) {
    this.spec = spec;
    this.maps = ["A", "B"].map((run) => new Heatmap(`${spec.name} of run ${run}`));
    this.line = new Paper(`${spec.name} over the run`);
    this.line.element.classList.add("course");
    this.stencil = new Stencil(this.line);
    this.badge = el("div", { class: "badge" });
    this.ends = ["A", "B"].map(() => el("div", { class: "ends" }));
    this.element = el("button", { type: "button", class: "tile", title: `${spec.name}\n${spec.meaning}\nClick to open the map.`, dataset: { key: spec.name }, onclick: onopen },
      el("b", {}, middle(titleOf(spec), 22)), this.badge, el("div", { class: "pair" }, ...this.maps.map(({ element }) => element)), this.line.element, ...this.ends);
  }

  /** `finding` is the open one of the metric, or null. */
  mark(finding) {
    const { sign, word } = finding ? LEVELS[finding.severity] : {};
    this.badge.textContent = finding ? `${sign} ${word}: ${title(finding.rule).toLowerCase()}` : "";
    this.badge.title = finding?.message ?? "";
    if (finding) this.element.dataset.level = finding.severity;
    else delete this.element.dataset.level;
  }

  /** Without a picture: `error` is why, empty while it is loading. */
  absent(error) {
    this.ends[0].textContent = error ? "could not be read" : "loading…";
    this.ends[0].title = error;
  }

  /** `runs` is [{series, values, sample, scale, exists}] of run A, and of B if there is one. */
  paint(runs) {
    this.maps[1].element.hidden = this.ends[1].hidden = runs.length < 2;
    runs.forEach(({ series, values, sample, scale, exists }, at) => {
      this.maps[at].draw({ values, rows: series.layers, cols: series.heads, scale, small: true, exists });
      paintSigns(this.maps[at], values, scale);
      const { whole } = courseOf(series, this.spec.summary);
      const [from, to] = [whole[0], whole[sample]];
      const arrow = to > from ? " ▲" : to < from ? " ▼" : "";
      const text = Number.isFinite(to) ? `${number(from)} → ${number(to)}${arrow}` : "not measured at this step";
      this.ends[at].title = "";
      this.ends[at].textContent = runs.length > 1 ? `${"AB"[at]} ${text}` : text;
    });
    this._line(runs[0]);
  }

  _line({ series, sample }) {
    const context = this.line.begin();
    const course = courseOf(series, this.spec.summary);
    const count = course.mean.length;
    const x = (column) => 2 + ((column + 0.5) / count) * (this.line.width - 4);
    this.stencil.put([course], (picture) => this._course(picture, course, x));
    context.fillStyle = theme().mark;
    context.fillRect(x(((sample + 0.5) * count) / series.steps.length - 0.5) - 0.75, 0, 1.5, this.line.height);
  }

  /** The model's line on the band of its layers. */
  _course(context, { mean, low, high }, x) {
    const { ink, line } = theme();
    const [bottom, top] = extent([...low, ...high, ...mean]) ?? [0, 1];
    const y = (value) => this.line.height - 3 - (top > bottom ? (value - bottom) / (top - bottom) : 0.5) * (this.line.height - 6);
    context.fillStyle = line;
    mean.forEach((_, i) => {
      if (low[i] <= high[i]) context.fillRect(x(i - 0.5), y(high[i]), x(1) - x(0) + 0.5, Math.max(1, y(low[i]) - y(high[i])));
    });
    context.strokeStyle = ink;
    context.lineWidth = 1.5;
    context.beginPath();
    mean.forEach((value, i) => {
      if (!Number.isFinite(value)) return;
      if (Number.isFinite(mean[i - 1])) context.lineTo(x(i), y(value));
      else context.moveTo(x(i), y(value));
    });
    context.stroke();
  }

  canvases() {
    return [...this.maps.map(({ paper }) => paper.canvas), this.line.canvas];
  }
}
