// The table of runs: a row each, sortable by every column. A click makes a run the run A, with shift the run B.

import { el, refill } from "./dom.js";
import { LEVELS, inShort } from "./findings.js";
import { exact, number, signed } from "./format.js";
import { titleOf } from "./heading.js";
import { apart } from "./names.js";
import { roving } from "./roving.js";
import { sorted, split, tagOf, toggledSort, valueOf } from "./run_rows.js";

const NAMED = 34; // letters of a run's name that fit
const BUTTONS = 3; // of a row

export class RunsTable {
  /** `onover(run)` is called with the run that is pointed at, or null. */
  constructor(app, onover) {
    this.app = app;
    this.onover = onover;
    this.head = roving(el("thead", {}), "across");
    this.body = roving(el("tbody", {}), "across");
    this.body.addEventListener("keydown", (event) => this._key(event), true);
    this.body.addEventListener("mouseover", ({ target }) => onover(target.closest("tr")?.dataset.run ?? null));
    this.body.addEventListener("mouseleave", () => onover(null));
    const table = el("table", { class: "runs-table", "aria-label": "runs" }, this.head, this.body);
    this.element = el("div", { class: "listing scroll", tabindex: "-1" }, table);
  }

  /** `columns` are keys; `shown` the runs that have a line and a picture. */
  paint({ rows, columns, shown, dark }) {
    const { state, index } = this.app;
    this.rows = sorted(rows, state.sort);
    this.columns = columns;
    const key = JSON.stringify([this.rows.map((row) => [...Object.values(row), ...row.values, ...row.hyperparameters]), columns, shown, state.run, state.other, state.sort, dark, index.metrics.length]);
    if (key === this.key) return;
    this.key = key;
    this._head();
    const runs = index.runs.map(({ run }) => run);
    const names = apart(runs, NAMED);
    refill(this.body, ...this.rows.map((row) => this._row(row, names.get(row.run), shown.includes(row.run), this.app.colours.of(row.run, dark, runs))));
  }

  /** Points out the rows of runs. */
  mark(runs) {
    for (const row of this.body.children) row.classList.toggle("over", runs.includes(row.dataset.run));
  }

  /** Metrics have a heading over their two columns. */
  _head() {
    const { columns } = this;
    const groups = columns.map((key) => (split(key)[0] === "last" ? this._metric(split(key)[1]) : split(key)[0] === "change" ? null : el("td", { colspan: key === "run" ? 2 : 1 }))).filter(Boolean);
    refill(this.head, el("tr", {}, el("td", {}), ...groups), el("tr", {}, el("td", {}), ...columns.map((key) => this._sorter(key))));
  }

  _metric(name) {
    const spec = this.app.index.metrics.find((m) => m.name === name);
    return el("th", { class: "group", colspan: 2, scope: "colgroup", title: spec ? `${name}\n${spec.question || spec.meaning}` : name }, spec ? titleOf(spec) : name);
  }

  _sorter(key) {
    const { sort } = this.app.state;
    const way = sort === `up ${key}` ? "ascending" : sort === `down ${key}` ? "descending" : "none";
    const words = this._title(key);
    const text = split(key)[0] === "last" || split(key)[0] === "change" ? split(key)[0] : words;
    return el("th", { "aria-sort": way, scope: "col", colspan: key === "run" ? 2 : null, class: ["run", "verdict"].includes(key) ? "left" : null },
      el("button", { type: "button", title: `Sort by ${words}`, "aria-label": `Sort by ${words}`, dataset: { key: `sort ${key}` }, onclick: () => this._sort(key) },
        text, el("span", { "aria-hidden": "true" }, { ascending: " ▲", descending: " ▼", none: "" }[way])));
  }

  _title(key) {
    const [kind, name] = split(key);
    if (kind === "hp") return name;
    if (name) return `${name}, ${kind === "last" ? "last value" : "change since the first sample"}`;
    if (kind === "run" || kind === "verdict") return kind === "run" ? "Run" : "Verdict";
    const word = kind === "loss" ? "Loss" : "Score";
    return tagOf(this.rows, kind) ?? `${word} (several tags)`;
  }

  _sort(key) {
    const sort = toggledSort(this.app.state.sort, key);
    this.app.update({ sort });
    this.app.voice.say(sort ? `Sorted by ${this._title(key)}, ${split(sort)[0] === "up" ? "lowest first" : "highest first"}` : "In the order of names");
  }

  _row(row, short, shown, { swatch, line, dashed }) {
    const { state } = this.app;
    const { run } = row;
    const side = run === state.run ? "A" : run === state.other ? "B" : "";
    const colour = el("button", { type: "button", class: "swatch", role: "checkbox", "aria-checked": String(shown), "aria-label": `Show ${run}`, title: shown ? "Shown below; click to hide" : "Click to show below", dataset: { key: `show ${run}` }, style: { borderColor: line, background: shown ? swatch : "transparent", borderStyle: dashed ? "dashed" : "solid" }, onclick: () => this.show(run) });
    const name = el("button", { type: "button", class: "name", title: `${run}\nClick: run A. Shift + click: run B.`, "aria-pressed": String(side === "A"), dataset: { key: `run ${run}` }, onclick: (event) => this.choose(run, event.shiftKey) }, short);
    const second = el("button", { type: "button", class: "second control", title: "Run B", "aria-label": `Make ${run} the run B`, "aria-pressed": String(side === "B"), disabled: side === "A", dataset: { key: `other ${run}` }, onclick: () => this.choose(run, true) }, "B");
    return el("tr", { dataset: { run }, onclick: (event) => event.target.closest("button") || this.choose(run, event.shiftKey) },
      el("td", {}, colour), el("th", { scope: "row", class: "left" }, name, side === "A" ? el("span", { class: "muted" }, " A") : null), el("td", {}, second),
      ...this.columns.slice(1).map((key) => this._cell(row, key)));
  }

  _cell(row, key) {
    const [kind, name] = split(key);
    if (kind === "verdict") return verdictCell(row);
    const value = valueOf(row, key);
    if (kind === "hp") return el("td", {}, value === undefined ? "–" : typeof value === "number" ? exact(value) : String(value));
    if (kind === "loss" || kind === "score") return el("td", { title: row[kind] ? `${row[kind][0]} at step ${row[kind][1]}` : "not logged" }, row[kind] ? (value === undefined ? "not finite" : number(value)) : "–");
    const ends = row.values.get(name);
    const waiting = ends && (kind === "last" ? ends.lastStep : ends.firstStep) === null && row.pending;
    const title = !ends ? "not measured in this run" : row.damaged.includes(name) ? "damaged" : waiting ? "being read" : `step ${ends.firstStep} to ${ends.lastStep}: ${number(ends.first)} to ${number(ends.last)}`;
    return el("td", { title }, waiting ? "…" : value === undefined ? "–" : kind === "last" ? number(value) : signed(value));
  }

  show(run) {
    const { shown } = this.app.views.runs;
    this.app.update({ shown: shown.includes(run) ? shown.filter((name) => name !== run) : [...shown, run] });
  }

  /** Makes a run the run A, or B where `second`; the two change places where it is the other. */
  choose(run, second = false) {
    const { run: a, other } = this.app.state;
    if (second) return run === a ? undefined : this.app.update({ other: run === other ? "" : run });
    return this.app.update({ run, finding: "", ...(run === other ? { other: a } : {}) });
  }

  /** ↑ and ↓ go from row to row. */
  _key(event) {
    const move = { ArrowUp: -BUTTONS, ArrowDown: BUTTONS }[event.key];
    if (!move || !event.target.matches(":focus-visible")) return;
    const all = [...this.body.querySelectorAll("button")];
    const next = all[all.indexOf(event.target) + move];
    if (next) (next.disabled ? all[all.indexOf(next) - 1] : next).focus();
    event.preventDefault();
    event.stopPropagation();
  }
}

function verdictCell({ verdict }) {
  if (!verdict) return el("td", { class: "left", title: "being read" }, "…");
  const { sign, word } = LEVELS[verdict.level];
  return el("td", { class: "left verdict-cell", title: `${word}. ${verdict.verdict}`, dataset: { level: verdict.level } }, el("b", { "aria-hidden": "true" }, sign), ` ${inShort(verdict)}`);
}
