// The run beside the geometry: loss, validation score and learning rate over steps, above the slider.

import { Cache, fetchCurves } from "./api.js";
import { ROLES, at, described } from "./curves.js";
import { el, setOptions } from "./dom.js";
import { LEVELS, mapOf, span, title } from "./findings.js";
import { shortened } from "./names.js";
import { roving } from "./roving.js";
import { StripChart } from "./strip_chart.js";

const TAG = 26; // letters of a tag that fit
const SHOWN = 24; // findings with a mark, the most severe
const REACH = 5; // pixels to either side of the pointer in which a tick is named

export class RunStrip {
  constructor(app) {
    this.app = app;
    this.version = 0;
    this.cache = new Cache(() => app.schedule(), fetchCurves);
    this.chart = new StripChart();
    this.rows = Object.fromEntries(Object.keys(ROLES).map((role) => [role, this._row(role)]));
    this.marks = roving(el("div", { class: "marks" }), "across");
    this.element = el("section", { class: "runstrip control", "aria-label": "the run's curves", hidden: true },
      el("div", { class: "curves" }, ...Object.values(this.rows).map(({ element }) => element)),
      el("div", { class: "plot" }, this.chart.element, this.marks));
    this.chart.element.addEventListener("mousemove", (event) => this._hover(this.chart.at(event)));
    this.chart.element.addEventListener("mouseleave", () => this._hover(null));
    this.chart.element.addEventListener("click", (event) => this._click(this.chart.at(event)));
    this.over = null;
  }

  _row(role) {
    const select = el("select", { "aria-label": `${ROLES[role].word}: which curve`, onchange: () => this.app.update({ [role]: select.value }) });
    const value = el("output", {});
    return { element: el("div", { class: "curve", dataset: { role } }, el("i", {}), select, value), select, value };
  }

  /** TensorBoard may have more of them by now. */
  retry() {
    this.version++;
  }

  /** What a run logged; null while it is loading, or an Error. */
  of(run) {
    const monitors = this.app.index.runs.find((r) => r.run === run)?.monitors.map(({ monitor }) => monitor);
    const { loss, score, rate } = this.app.state;
    return monitors ? this.cache.get({ run, monitors, loss, score, rate }, this.version) : null;
  }

  /** `timeless` is a view without a step. */
  paint(timeless) {
    const { state } = this.app;
    const run = this.of(state.run);
    const known = run && !(run instanceof Error) ? run : null;
    const chosen = Object.keys(ROLES).some((role) => state[role]);
    this.element.hidden = !known || !(Object.keys(known.curves).length || chosen);
    this.run = this.element.hidden ? null : known;
    if (!this.run) return;
    const series = this.app.spec && !timeless ? this.app.series(state.run) : null;
    this.steps = series?.steps ?? null;
    this.other = this._other(series);
    const found = this.app.findings(state.run);
    this.findings = found?.findings ?? [];
    this.span = this.steps ?? [found?.first_step, found?.last_step].filter(Number.isFinite);
    for (const [role, row] of Object.entries(this.rows)) this._choices(role, row);
    this._draw();
    this._marks();
    this._read();
  }

  /** Run B's curves on A's steps: dashed, as in Trace. */
  _other(series) {
    const { state } = this.app;
    const other = state.other ? this.of(state.other) : null;
    if (!other || other instanceof Error) return null;
    if (state.align === "step" || !["compare", "trace", "evolution", "overview"].includes(state.view)) return { curves: other.curves, onto: (step) => step, back: (step) => step, key: "" };
    const b = this.app.series(state.other)?.steps;
    if (!series || !b) return null;
    const [from, to] = [[b[0], b[b.length - 1]], [series.steps[0], series.steps[series.steps.length - 1]]];
    const map = ([low, high], [first, last]) => (step) => first + ((step - low) / (high - low || 1)) * (last - first);
    return { curves: other.curves, onto: map(from, to), back: map(to, from), key: [...from, ...to].join() };
  }

  /** What a curve can be; made anew where the run or the choice is another one. */
  _choices(role, row) {
    const { element, select } = row;
    const { [role]: choice } = this.app.state;
    if (row.run === this.run && row.choice === choice) return;
    Object.assign(row, { run: this.run, choice });
    const { tags, curves } = this.run;
    const found = curves[role]?.tag;
    const names = shortened(tags, TAG);
    const automatic = choice ? `${ROLES[role].word}, found by its name` : names.get(found) ?? `no ${ROLES[role].word.toLowerCase()}`;
    setOptions(select, [["", automatic], ["-", "none"], ...tags.map((tag) => [`=${tag}`, names.get(tag), tag])], choice);
    if (select.selectedIndex < 0) select.value = ""; // chosen in another run; this one has no such tag
    select.title = found ? `${ROLES[role].word}: ${found}` : `${ROLES[role].word}: choose a curve of this run`;
    element.dataset.empty = String(!found);
  }

  _cursor() {
    return this.steps ? this.app.step() : null;
  }

  _draw() {
    this.chart.draw({ run: this.run, other: this.other, steps: this.span, cursor: this._cursor(), over: this.over === null ? null : this._words() });
  }

  _words() {
    const step = this.over;
    return { step, text: described(this.run, this.findings, step, REACH * this.chart.perPixel()) };
  }

  /** A sign where each finding began, as in Summary: a click opens the map there. */
  _marks() {
    const places = this.findings.slice(0, SHOWN).map((finding) => [finding, Math.round(this.chart.x(finding.since_step))]);
    const key = JSON.stringify(places.map(([finding, x]) => [finding, x]));
    if (key === this.key) return;
    this.key = key;
    this.marks.replaceChildren(...places.reverse().map(([finding, x]) => {
      const { sign, word } = LEVELS[finding.severity];
      const label = `${word}: ${title(finding.rule)}, ${span(finding)}. ${finding.message}`;
      return el("button", { type: "button", class: "event", title: `${label}\nClick to open the map.`, "aria-label": label, dataset: { level: finding.severity }, style: { left: `${x}px` }, onclick: () => this.app.update(mapOf(finding)) }, sign);
    }));
  }

  _hover(step) {
    if (step === this.over || !this.run) return;
    this.over = step;
    this._draw();
    this._read();
  }

  _click(step) {
    if (step !== null && this.steps) this.app.goTo(step);
  }

  /** Values at the pointer, at the slider's step, or at the end. */
  _read() {
    const step = this.over ?? this._cursor() ?? Infinity;
    for (const [role, { value }] of Object.entries(this.rows)) {
      const [a, b] = [this.run.curves[role], role === "rate" ? null : this.other?.curves[role]];
      const other = b && b.tag === a?.tag ? at(b, this.other.back(step)) : "";
      value.textContent = [at(a, step), other && `B ${other}`].filter(Boolean).join(" · ");
    }
    const said = Object.values(this.rows).filter(({ value }) => value.textContent);
    this.chart.name(`curves of the run: ${said.map(({ select, value }) => `${select.title} ${value.textContent}`).join("; ")}`);
  }
}
