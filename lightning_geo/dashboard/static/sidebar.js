// What to look at: runs, stack, metric.

import { choice, el, refill, setOptions } from "./dom.js";
import { number } from "./format.js";
import { titleOf } from "./heading.js";
import { shortened } from "./names.js";
import { roving } from "./roving.js";
import { summaryOf } from "./state.js";

const NAMED = 22; // letters of a run's name that fit
const PART_ORDER = ["", "query", "key", "value", "input", "attention", "output", "head"];

export class Sidebar {
  constructor(app) {
    this.app = app;
    const select = (field) => el("select", { name: field, onchange: (event) => app.update({ [field]: event.target.value }) });
    this.run = select("run");
    this.other = select("other");
    this.monitor = select("monitor");
    this.stack = select("stack");
    this.metrics = roving(el("div", { class: "metrics" }), "both");
    this.monitorRow = el("label", {}, "Monitor", this.monitor);
    this.stackRow = el("label", {}, "Stack", this.stack);
    this.element = el("nav", { class: "sidebar" },
      el("label", {}, "Run A", this.run), el("label", {}, "Run B", this.other),
      this.monitorRow, this.stackRow, this.metrics);
    this.range = choice("colours", [
      ["run", "whole run", "One scale for all steps of the run. What lies far off all else is beyond it: it has the outermost colour and a triangle, and ▲ or ▼ on the colour bar"],
      ["step", "this step", "A scale of this step alone: small differences between heads show"],
      ["full", "full range", "One scale for all steps of the run, from its lowest to its highest value"],
      ["fixed", "fixed", "From the lowest to the highest value that the metric can have: runs and models can be compared"],
    ], (range) => app.update({ range }));
    this.change = choice("what", [
      ["", "value", "The metric itself"],
      ["1", "change", "Its change since the first sample: blue fell, orange rose"],
    ], (change) => app.update({ change: change === "1" }));
    this.align = choice("alignment", [
      ["step", "step", "Run B at the same step"],
      ["fraction", "fraction", "Run B at the same fraction of its training: for runs of different lengths"],
    ], (align) => app.update({ align }));
    this.heads = choice("heads of a layer", [
      ["mean", "mean", "A layer is the mean of its heads"],
      ["min", "min", "A layer is its lowest head: one that falls shows"],
      ["max", "max", "A layer is its highest head: one that rises shows"],
      ["spread", "spread", "A layer is its highest head less its lowest: heads that part show"],
    ], (heads) => app.update({ heads }));
    for (const group of [this.range, this.change, this.align, this.heads]) roving(group.element, "across");
    this.rangeRow = el("span", { class: "option" }, "Colour scale", this.range.element);
    this.headsRow = el("span", { class: "option" }, "Heads", this.heads.element);
    this.alignRow = el("span", { class: "option" }, "Align", this.align.element);
    this.options = el("div", { class: "options" },
      el("span", { class: "option" }, "Show", this.change.element),
      this.rangeRow, this.headsRow, this.alignRow);
  }

  paint() {
    const { state, index, spec } = this.app;
    const names = shortened(index.runs.map(({ run }) => run), NAMED);
    const runs = index.runs.map(({ run }) => [run, names.get(run), run]);
    setOptions(this.run, runs, state.run);
    setOptions(this.other, [["", "none"], ...runs.filter(([run]) => run !== state.run)], state.other);
    const monitors = index.runs.find(({ run }) => run === state.run)?.monitors ?? [];
    const monitor = monitors.find((m) => m.monitor === state.monitor);
    setOptions(this.monitor, monitors.map((m) => [m.monitor, m.monitor]), state.monitor);
    setOptions(this.stack, (monitor?.stacks ?? []).map((s) => [s.stack, s.stack]), state.stack);
    this.monitorRow.hidden = monitors.length < 2;
    this.stackRow.hidden = (monitor?.stacks.length ?? 0) < 2;
    this.range.set(state.range);
    this.change.set(state.change ? "1" : "");
    this.align.set(state.align);
    this.options.hidden = state.view === "summary";
    this.heads.set(spec ? summaryOf(state, spec) : "");
    this.headsRow.hidden = !spec?.axes.includes("head") || state.view === "overview";
    this.rangeRow.hidden = state.view === "trace";
    this.alignRow.hidden = !state.other || !["compare", "trace", "evolution", "overview"].includes(state.view);
    const fixed = this.range.element.querySelector("[data-value=fixed]");
    const bounded = spec && spec.range[0] !== null && spec.range[1] !== null;
    fixed.textContent = bounded ? `${number(spec.range[0])} to ${number(spec.range[1])}` : "fixed";
    fixed.disabled = !bounded || state.change;
    this._metrics(monitor?.stacks.find((s) => s.stack === state.stack)?.metrics ?? []);
  }

  /** Families, their metrics, and the roles or stages of the chosen one. Built anew only if that changes. */
  _metrics(names) {
    const { state, index } = this.app;
    const key = JSON.stringify([names, state.metric]);
    if (key === this.key) return;
    this.key = key;
    const specs = index.metrics.filter((m) => names.includes(m.name));
    const families = new Map();
    for (const spec of specs) {
      const bases = families.get(spec.family) ?? families.set(spec.family, new Map()).get(spec.family);
      bases.set(spec.base, [...(bases.get(spec.base) ?? []), spec]);
    }
    const chosen = specs.find((m) => m.name === state.metric);
    const groups = [...families].map(([family, bases]) =>
      el("section", {}, el("h3", {}, family), ...[...bases.values()].flatMap((parts) => this._entry(parts, chosen))));
    const top = this.metrics.scrollTop;
    refill(this.metrics, ...groups);
    this.metrics.scrollTop = top;
  }

  _entry(parts, chosen) {
    const [first] = parts;
    const open = parts.includes(chosen);
    const view = this.app.state.view === "summary" ? { view: "map" } : {};
    const pick = (spec) => this.app.update({ metric: spec.name, ...view, ...(spec.axes.includes("head") ? {} : { picked: [] }) });
    // going from one metric to another keeps the role: queries' rank to queries' drift
    const same = parts.find((spec) => spec.part === chosen?.part) ?? parts.find((spec) => spec.headline) ?? first;
    const entry = el("button", { type: "button", class: "metric", "aria-pressed": String(open), title: hint(first), dataset: { key: `base ${first.base}` }, onclick: () => pick(same) }, first.base);
    if (!open || parts.length === 1) return [entry];
    const ordered = [...parts].sort((a, b) => PART_ORDER.indexOf(a.part) - PART_ORDER.indexOf(b.part));
    const roles = choice("part", ordered.map((spec) => [spec.name, spec.part, hint(spec)]), (name) => pick(parts.find((p) => p.name === name)));
    roles.set(chosen.name);
    roles.element.classList.add("parts");
    return [entry, roles.element];
  }
}

function hint(spec) {
  return [titleOf(spec), spec.question, spec.meaning].filter(Boolean).join("\n");
}
