// Lines of the picked heads and layers, with a legend; the lines of all layers while none is picked.

import { Chart } from "./chart.js";
import { pickColour as pickOn, graded } from "./contrast.js";
import { el } from "./dom.js";
import { number, withUnit } from "./format.js";
import { shortened } from "./names.js";
import { theme } from "./paper.js";
import { roving } from "./roving.js";
import { nearest, trace } from "./series.js";
import { summaryOf } from "./state.js";

const HEADS = { mean: "Mean", min: "Lowest head", max: "Highest head", spread: "Spread of heads (highest − lowest)" };
const NAMED = 44; // letters of a run's name in the legend

export function cellName({ layer, head }) {
  return head === null ? `layer ${layer}` : `layer ${layer}, head ${head}`;
}

export function pickColour(position) {
  return pickOn(position, theme().dark);
}

export class TracePanel {
  constructor(app, onhover = () => {}, hint = "Click a cell or a layer number to pin it.") {
    this.app = app;
    this.hint = hint;
    this.chart = new Chart("lines of the picked heads and layers over steps");
    this.legend = roving(el("div", { class: "legend" }), "both");
    this.element = el("div", { class: "trace" }, this.legend, this.chart.element);
    this.chart.element.addEventListener("click", (event) => {
      const x = this.chart.at(event);
      if (x !== null) app.goTo(this.fraction ? this.stepAt(x) : x);
    });
    this.over = null;
    const hover = (x, over) => {
      this.over = over;
      if (this.lines) this._draw();
      onhover(x, over);
    };
    this.chart.element.addEventListener("mousemove", (event) => hover(this.chart.at(event), this.chart.near(event)));
    this.chart.element.addEventListener("mouseleave", () => hover(null, null));
  }

  stepAt(fraction) {
    const { steps } = this.first;
    return steps[0] + fraction * (steps[steps.length - 1] - steps[0]);
  }

  /** `runs` is [{series, name}], the second one dashed. */
  paint(runs) {
    const { state, spec } = this.app;
    const shown = runs.filter(({ series }) => series);
    if (!shown.length) return;
    this.first = shown[0].series;
    this.shown = shown.length;
    this.fraction = shown.length > 1 && state.align === "fraction";
    const cells = this._cells(shown[0].series, spec);
    const made = [...shown.flatMap(({ series, name }) => [series, name]), state.picked, state.change, state.heads, this.fraction, spec, theme().dark];
    if (!this.made || made.some((part, i) => part !== this.made[i]) || made.length !== this.made.length) this.lines = this._made(cells, shown, spec);
    this.made = made;
    this._legend(cells, shown); // first: the chart takes the room that it leaves
    this._draw();
  }

  _draw() {
    const { spec } = this.app;
    const across = this.fraction ? "fraction of training" : "step";
    this.chart.draw({ lines: this.lines, cursor: this.cursor(), across, unit: spec.unit, over: this.over, text: this._words() });
  }

  /** Where the slider's step lies. */
  cursor() {
    const now = this.app.step();
    const [start, end] = [this.first.steps[0], this.first.steps[this.first.steps.length - 1]];
    return this.fraction ? (now - start) / (end - start || 1) : now;
  }

  /** What is said of the line that is pointed at. */
  _words() {
    const line = this.lines[this.over?.index];
    if (!line) return "";
    const { label, run, xs, ys } = line;
    const { sample } = this.over;
    const which = this.shown > 1 ? ` ${run === this.app.state.run ? "A" : "B"}` : "";
    return `${label}${which}: ${withUnit(number(ys[sample]), this.app.spec.unit)}, ${this.fraction ? "fraction" : "step"} ${number(xs[sample])}`;
  }

  _made(cells, shown, spec) {
    const { state } = this.app;
    return cells.flatMap((cell) =>
      shown.map(({ series, name }, b) => {
        let ys = trace(series, cell.layer, cell.head, summaryOf(state, spec));
        if (state.change) ys = ys.map((y) => y - ys[0]);
        const last = series.steps[series.steps.length - 1] - series.steps[0] || 1;
        const xs = this.fraction ? series.steps.map((step) => (step - series.steps[0]) / last) : series.steps;
        return { xs, ys, colour: cell.colour, dashed: b > 0, wide: state.picked.length > 0, label: cell.label, end: b ? "" : cell.end, run: name };
      }),
    );
  }

  _cells(series, spec) {
    const { picked } = this.app.state;
    if (picked.length) return picked.map((cell, i) => ({ ...cell, colour: pickColour(i), label: cellName(cell), end: cell.head === null ? `${cell.layer}` : `${cell.layer}.${cell.head}` }));
    return Array.from({ length: series.layers }, (_, layer) => ({
      layer, head: null, colour: graded(layer, series.layers, theme().dark), label: `layer ${layer}`, end: `${layer}`,
      all: spec.axes.includes("head"),
    }));
  }

  _legend(cells, shown) {
    const { picked } = this.app.state;
    const key = JSON.stringify([picked, cells.length, cells[0]?.all && summaryOf(this.app.state, this.app.spec), shown.map(({ name }) => name), theme().dark]);
    if (key === this.key) return; // a repaint at another step leaves it as it is
    this.key = key;
    const items = picked.length
      ? cells.map((cell) =>
          el("button", { type: "button", class: "pick", title: `Unpin ${cell.label}`, onclick: () => this.app.pick(cell.layer, cell.head) },
            el("i", { style: { background: cell.colour } }), cell.label, el("b", { class: "control" }, "×")))
      : [el("span", { class: "muted" }, `${cells[0]?.all ? `${HEADS[summaryOf(this.app.state, this.app.spec)]} of each layer` : "Each layer"}, its number at the end of its line. ${this.hint}`)];
    if (picked.length > 1) items.push(el("button", { type: "button", class: "pick control", onclick: () => this.app.update({ picked: [] }) }, "clear"));
    if (shown.length > 1) {
      const names = shortened(shown.map(({ name }) => name), NAMED);
      const runName = (at) => el("span", { title: shown[at].name }, names.get(shown[at].name));
      items.push(el("span", { class: "runs" }, ...["solid", "dashes"].map((line, at) => el("span", { class: "run" }, el("i", { class: line }), runName(at)))));
    }
    this.legend.replaceChildren(...items);
  }
}

/** Every line's value where it is nearest to a point, as text. */
export function readOut(x, lines) {
  return lines
    .map((line) => ({ line, sample: nearest(line.xs, x) }))
    .filter(({ sample }) => sample >= 0)
    .map(({ line, sample }) => ({ label: line.label, colour: line.colour, x: line.xs[sample], run: line.run, value: number(line.ys[sample]) }));
}
