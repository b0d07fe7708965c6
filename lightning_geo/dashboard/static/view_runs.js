// Runs: more than two of them. A table, lines over steps, a picture each, and their hyperparameters.

import { el, refill } from "./dom.js";
import { titleOf } from "./heading.js";
import { runList } from "./host.js";
import { axesOf, passing } from "./parallel_axes.js";
import { ParallelPlot } from "./parallel_plot.js";
import { theme } from "./paper.js";
import { shownRuns } from "./run_colours.js";
import { differing, seedGroups, sorted, valueOf } from "./run_rows.js";
import { RunsLines } from "./runs_lines.js";
import { RunsPictures } from "./runs_pictures.js";
import { RunsTable } from "./runs_table.js";

const EACH = 8 * 2 ** 20; // bytes of a metric of a run: of a long run of a large model fewer samples are fetched here
const COLUMNS = 4; // headline metrics in the table unless chosen otherwise
const APART = 92; // pixels from axis to axis of the plot at least
const PARAMETERS = 6; // hyperparameters in the table and the plot, of those that differ
const ALONE = "Runs lays the runs of a log directory side by side: a table of their verdicts, losses and headline metrics, a metric of all of them over steps, and how hyperparameters led there. There is one run so far.";

export class RunsView {
  constructor(app) {
    this.app = app;
    this.patient = true; // the table does not need the samples of run A
    Object.assign(this, { shown: [], keys: ["run"], known: [] });
    this.listing = new RunsTable(app, (run) => this._over(run ? [run] : []));
    this.lines = new RunsLines(app, (runs) => this._over(runs, this.lines));
    this.plot = new ParallelPlot(app, (runs) => this._over(runs));
    this.pictures = new RunsPictures(app);
    this.metrics = el("div", { class: "menu" });
    this.count = el("span", { class: "muted", role: "status" });
    const button = (text, title, shown) => el("button", { type: "button", title, onclick: () => app.update({ shown: shown() }) }, text);
    this.tools = el("div", { class: "bar-of" }, el("h3", {}, "All runs"), this.count,
      el("span", { class: "option control" }, "Show below",
        button("default", "The first twelve, of those that the filter of TensorBoard's list of runs leaves", () => null),
        button("table's first 12", "The first twelve of the table as it is sorted and filtered", () => this.listing.rows.slice(0, 12).map(({ run }) => run)),
        button("none", "None", () => [])),
      el("details", { class: "control columns" }, el("summary", {}, "Columns"), this.metrics));
    this.two = el("div", { class: "two" }, this.lines.element, this.plot.element);
    this.alone = el("p", { class: "muted" }, ALONE);
    this.all = el("div", { class: "parts-of" }, this.tools, this.listing.element, this.two, this.pictures.element);
    this.element = el("div", { class: "view runs" }, this.alone, this.all);
  }

  caption() {
    return `runs, ${this.app.state.metric}`;
  }

  notice() {
    return this.rows instanceof Error ? `The table of runs could not be read (${this.rows.message}).` : "";
  }

  paint() {
    const { app } = this;
    const runs = app.index.runs.map(({ run }) => run);
    this.alone.hidden = runs.length > 1;
    this.all.hidden = runs.length < 2;
    if (runs.length < 2) return;
    const { filter, pattern } = runList();
    app.colours.groupBy(pattern);
    const { dark } = theme();
    const colourOf = (run) => app.colours.of(run, dark, runs);
    this.shown = shownRuns(app.state.shown, runs, filter);
    this._read(runs);
    this.two.dataset.plain = String(!this.parameters.length);
    this._table(dark);
    const rows = new Map(this.known.map((row) => [row.run, row]));
    const items = this.shown.map((run) => ({ run, row: rows.get(run), colour: colourOf(run), ...this._series(run) }));
    const groups = seedGroups(this.shown.map((run) => rows.get(run)).filter(Boolean));
    this.lines.paint(items.filter(({ series }) => series), groups, dark);
    this.plot.paint({ rows: this.known, axes: this.axes, colourOf, why: this.parameters.length ? "" : !this.last ? "Not known yet." : "No run here has hyperparameters that differ (save_hyperparameters in a LightningModule logs them)." });
    this.pictures.paint(items);
  }

  /** The rows of the table: what was known before while others are on their way. */
  _read(runs) {
    const { app } = this;
    const { monitor, stack, loss, score } = app.state;
    this.names = this._columns();
    const place = JSON.stringify([monitor, stack]);
    if (place !== this.place) this.last = null; // rows of another stack are not shown meanwhile
    this.place = place;
    this.rows = app.rows.get({ monitor, stack, loss, score, metrics: this.names });
    if (this.rows && !(this.rows instanceof Error)) this.last = this.rows;
    const known = (this.last?.rows ?? []).filter(({ run }) => runs.includes(run));
    this.known = known.length ? known : runs.map((run) => ({ run, verdict: null, loss: null, score: null, values: new Map(), hyperparameters: new Map(), damaged: [], pending: true }));
    this.parameters = differing(this.known).slice(0, PARAMETERS);
    const outcomes = ["loss", "score"].filter((role) => this.known.some((row) => row[role]));
    const metrics = [...new Set([app.state.metric, ...this.names])].filter((name) => this.names.includes(name));
    const axes = [...this.parameters.map((name) => `hp ${name}`), ...outcomes, ...metrics.map((name) => `last ${name}`)];
    const room = Math.max(4, Math.floor(this.plot.element.clientWidth / APART));
    this.axes = axesOf(this.known, axes).slice(0, room);
    this.keys = ["run", "verdict", ...outcomes, ...this.names.flatMap((name) => [`last ${name}`, `change ${name}`]), ...this.parameters.map((name) => `hp ${name}`)];
  }

  _columns() {
    const names = this.app.metricNames();
    const chosen = this.app.state.columns?.filter((name) => names.includes(name));
    if (chosen) return chosen;
    const key = this.app.index.metrics.filter((spec) => spec.headline && names.includes(spec.name)).map(({ name }) => name);
    return (key.length ? key : names).slice(0, COLUMNS);
  }

  _table(dark) {
    const { brush } = this.app.state;
    const rows = this.parameters.length ? passing(this.known, this.axes, brush) : this.known;
    this.count.textContent = [`${rows.length === this.known.length ? this.known.length : `${rows.length} of ${this.known.length}`} runs, ${this.shown.length} shown below`, this.rows?.pending ? `reading ${this.rows.pending}…` : ""].filter(Boolean).join("; ");
    this.listing.paint({ rows, columns: this.keys, shown: this.shown, dark });
    this._menu();
  }

  /** Which metrics the table has. */
  _menu() {
    const specs = this.app.index.metrics.filter(({ name }) => this.app.metricNames().includes(name));
    const key = JSON.stringify([specs.map(({ name }) => name), this.names]);
    if (key === this.menu) return;
    this.menu = key;
    refill(this.metrics, ...specs.map((spec) => el("label", {}, el("input", { type: "checkbox", checked: this.names.includes(spec.name), dataset: { key: spec.name }, onchange: () => this._toggle(spec.name) }), ` ${titleOf(spec)}`)));
  }

  _toggle(name) {
    const columns = this.names.includes(name) ? this.names.filter((other) => other !== name) : [...this.names, name].slice(-16);
    this.app.update({ columns });
  }

  _series(run) {
    const { app } = this;
    if (run === app.state.run) return { series: app.series(run), error: app.error(run) };
    const samples = app.samplesOf(run, EACH);
    return { series: app.series(run, undefined, samples), error: app.error(run, undefined, samples) };
  }

  /** Points out runs wherever they are. */
  _over(runs, from = null) {
    this.plot.mark(runs);
    this.listing.mark(runs);
    if (from !== this.lines) this.lines.mark(runs);
  }

  canvases() {
    return [this.lines.chart.paper.canvas, ...(this.parameters?.length ? [this.plot.paper.canvas] : []), ...this.pictures.canvases()];
  }

  table() {
    const keys = this.keys.slice(1);
    const rows = [["run", ...keys.map((key) => key.replace("hp ", ""))]];
    for (const row of sorted(this.known, this.app.state.sort)) {
      rows.push([row.run, ...keys.map((key) => (key === "verdict" ? row.verdict?.verdict ?? "" : told(valueOf(row, key))))]);
    }
    return rows;
  }
}
RunsView.hint = "All runs: a table, lines over steps, a picture each, hyperparameters";

function told(value) {
  return typeof value === "number" ? value : String(value ?? "");
}
