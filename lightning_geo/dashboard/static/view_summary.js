// Summary: is something wrong, where, since when, and what to do. What the tab opens with.

import { el, refill } from "./dom.js";
import { LEVELS, bySeverity, evidence, inShort } from "./findings.js";
import { shortened } from "./names.js";
import { roving } from "./roving.js";
import { SummaryPanel } from "./summary_panel.js";

const LISTED = 24; // runs whose verdicts are fetched

export class SummaryView {
  constructor(app) {
    this.app = app;
    this.timeless = true;
    this.runs = roving(el("ul", { class: "verdicts" }), "both");
    this.panels = [new SummaryPanel(app), new SummaryPanel(app)];
    this.both = el("div", { class: "both" }, ...this.panels.map(({ element }) => element));
    this.element = el("div", { class: "view summary" }, this.runs, this.both);
  }

  heading() {
    return [];
  }

  caption() {
    return `summary, ${[this.app.state.run, this.app.state.other].filter(Boolean).join(" and ")}`;
  }

  paint() {
    const { state } = this.app;
    this._runs();
    this.panels[0].paint(state.run, state.other && "A");
    this.panels[1].element.hidden = !state.other;
    if (state.other) this.panels[1].paint(state.other, "B");
  }

  /** A line for each run, the sick ones first: a click chooses it. */
  _runs() {
    const { app } = this;
    const { runs } = app.index;
    this.runs.hidden = runs.length < 2;
    if (runs.length < 2) return;
    const names = shortened(runs.slice(0, LISTED).map(({ run }) => run), 36);
    const listed = bySeverity(runs.slice(0, LISTED).map(({ run }) => {
      const found = app.findings(run);
      const known = found && !(found instanceof Error) ? found : null;
      return { run, short: names.get(run), known, level: known?.level ?? "unknown", failed: found instanceof Error };
    }));
    const key = JSON.stringify([listed, runs.length, app.state.run, app.state.other]);
    if (key === this.key) return;
    this.key = key;
    const more = runs.length - LISTED;
    refill(this.runs, ...listed.map((item) => el("li", {}, this._run(item))),
      ...(more > 0 ? [el("li", { class: "muted" }, `${more} more runs: choose one on the left.`)] : []));
  }

  _run({ run, short, known, level, failed }) {
    const { state } = this.app;
    const side = run === state.run ? "A" : run === state.other ? "B" : "";
    const { sign } = LEVELS[level];
    return el("button", { type: "button", class: "run-verdict", title: run, dataset: { level, key: run }, "aria-pressed": String(run === state.run), onclick: () => this._choose(run) },
      el("span", { class: "sign", "aria-hidden": "true" }, sign), el("b", {}, short),
      el("span", {}, known ? inShort(known) : failed ? "could not be read" : "loading…"),
      side && state.other ? el("span", { class: "muted" }, side) : null);
  }

  _choose(run) {
    const { state } = this.app;
    this.app.update({ run, finding: "", ...(run === state.other ? { other: state.run } : {}) });
  }

  /** See `SummaryPanel`. */
  leading() {
    return this.panels[0].leading();
  }

  canvases() {
    return this._shown().flatMap((panel) => panel.canvases());
  }

  _shown() {
    return this.panels.slice(0, this.app.state.other ? 2 : 1);
  }

  table() {
    const rows = [["run", "verdict", "severity", "rule", "stack", "layers", "since step", "until step", "evidence", "message", "next"]];
    for (const { run, found } of this._shown()) {
      if (found && !found.findings.length) rows.push([run, found.verdict, ...Array(rows[0].length - 2).fill("")]);
      for (const f of found?.findings ?? []) {
        rows.push([run, found.verdict, f.severity, f.rule, f.stack, f.layers.join(" "), f.since_step, f.until_step ?? "", evidence(f), f.message, f.next.join(" ")]);
      }
    }
    return rows;
  }
}
SummaryView.hint = "Whether something is wrong, where, since when, and what to do";
