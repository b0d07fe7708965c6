// The page: what is chosen, what is loaded, and the view that shows it.

import { Cache, Metadata, fetchFindings, fetchIndex, limit } from "./api.js";
import { choice, el } from "./dom.js";
import { exportCsv, exportPng } from "./export.js";
import { keyOf } from "./findings.js";
import { Heading } from "./heading.js";
import { followTheme, linkTo, onReload, readView, writeView } from "./host.js";
import { forgetTheme } from "./paper.js";
import { Player } from "./player.js";
import { Scales } from "./scales.js";
import { nearest, trace } from "./series.js";
import { Sidebar } from "./sidebar.js";
import { VIEWS, decodeState, encode, settled, stackOf, toggled } from "./state.js";
import { VIEW_TYPES } from "./views.js";

const POLL = 5000; // milliseconds: TensorBoard's own default for reading new events

export class App {
  constructor(root) {
    this.wanted = decodeState(readView()); // what was chosen; what of it is not there (yet) gives way
    this.state = this.wanted;
    this.index = { runs: [], metrics: [] };
    this.metadata = new Metadata(() => this.schedule());
    this.scales = new Scales();
    this.cache = new Cache(() => this.schedule());
    this.found = new Cache(() => this.schedule(), fetchFindings);
    this.views = Object.fromEntries(Object.entries(VIEW_TYPES).map(([name, View]) => [name, new View(this)]));
    this.tabs = choice("view", VIEWS.map((name) => [name, name[0].toUpperCase() + name.slice(1), VIEW_TYPES[name].hint]), (view) => this.update({ view }));
    this.sidebar = new Sidebar(this);
    this.player = new Player(this);
    this.heading = new Heading();
    this.message = el("div", { class: "message", role: "status" });
    this.stage = el("div", { class: "stage" });
    root.append(
      el("div", { class: "page" },
        this.sidebar.element,
        el("main", {},
          el("header", {}, this.tabs.element, this.sidebar.options, this._buttons()),
          this.heading.element, this.message, this.stage, this.player.element)));
    followTheme(() => {
      forgetTheme();
      this.schedule();
    });
    new ResizeObserver(() => this.schedule()).observe(this.stage);
    onReload(() => this.reload());
    setInterval(() => document.hidden || this.reload(), POLL);
    this.reload();
  }

  _buttons() {
    const button = (text, title, onclick) => el("button", { type: "button", title, onclick }, text);
    this.link = button("Link", "Copy an address that leads to this view", () => this._copy());
    return el("div", { class: "buttons" },
      button("PNG", "Save the picture", () => exportPng(this)),
      button("CSV", "Save the numbers shown", () => exportCsv(this)),
      this.link);
  }

  async _copy() {
    const text = linkTo(encode(this.state));
    try {
      await navigator.clipboard.writeText(text);
      this.link.textContent = "Copied";
    } catch {
      window.prompt("The address of this view:", text); // no clipboard without HTTPS
    }
    setTimeout(() => (this.link.textContent = "Link"), 1500);
  }

  /** Asks what there is; the metrics that are shown follow where there is more of them. */
  async reload() {
    if (this.reloading) return;
    this.reloading = true;
    try {
      this.index = await fetchIndex();
      this.failure = "";
      for (const kept of [this.metadata, this.cache, this.found]) kept.retry();
    } catch (error) {
      this.failure = `TensorBoard does not answer (${error.message}).`;
    }
    this.loaded = true;
    this.reloading = false;
    this.schedule();
  }

  update(patch) {
    this.wanted = { ...this.wanted, ...patch };
    this.state = settled(this.wanted, this.index);
    this.schedule();
  }

  /** Paints once per frame, however much has changed. */
  schedule() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.render();
    });
  }

  render() {
    this.state = settled(this.wanted, this.index);
    const { state } = this;
    this.spec = this.index.metrics.find((m) => m.name === state.metric) ?? null;
    this.tabs.set(state.view);
    this.sidebar.paint();
    const view = this.views[state.view];
    if (this.stage.firstChild !== view.element) this.stage.replaceChildren(view.element);
    this.heading.paint(this.spec ? view.heading?.() : null, this.spec);
    const ready = this.spec && (view.timeless || (this.series(state.run) && !this.error(state.run)));
    this.stage.style.visibility = ready ? "visible" : "hidden";
    this.player.paint(view.timeless);
    if (ready) view.paint();
    this.message.textContent = this._trouble(view);
    clearTimeout(this.saving);
    // not while TensorBoard is still reading the run that an address asks for
    if ([state.run, ""].includes(this.wanted.run)) this.saving = setTimeout(() => writeView(encode(this.state)), 400);
  }

  _trouble(view) {
    if (this.failure) return this.failure;
    if (!this.loaded) return "Loading…";
    if (!this.spec) return "No run here holds a record of the geometry. Is a GeometryMonitor among the Trainer's callbacks?";
    if (view.timeless) return "";
    const error = this.error(this.state.run) || (this.state.other && this.error(this.state.other));
    if (error) return error;
    if (!this.series(this.state.run)) return "Loading…";
    return view.notice?.() ?? "";
  }

  _stack(run, monitor = this.state.monitor) {
    const found = this.index.runs.find((r) => r.run === run)?.monitors;
    return found?.find((m) => m.monitor === monitor) ?? found?.[0];
  }

  _got(run, metric = this.state.metric, samples = 0, name = this.state.stack) {
    const monitor = this._stack(run);
    const stack = stackOf(monitor, name);
    if (!stack?.metrics.includes(metric)) return new Error(`Run ${run} has no ${metric} in stack ${name}.`);
    if (!this.runMetadata(run)) return null; // it tells how large a sample is
    const request = { run, monitor: monitor.monitor, stack: stack.stack, metric, samples: samples || this.samplesOf(run) };
    return this.cache.get(request, monitor.last.join());
  }

  /** The samples of a metric in a run, or null until they are here. */
  series(run, metric, samples, stack) {
    const got = this._got(run, metric, samples, stack);
    return got instanceof Error || !got?.steps.length ? null : got;
  }

  error(run) {
    const got = this._got(run);
    return got instanceof Error ? got.message : got && !got.steps.length ? `${this.state.metric} has no sample yet.` : "";
  }

  metricNames(run = this.state.run) {
    return stackOf(this._stack(run), this.state.stack)?.metrics ?? [];
  }

  /** What a run's monitor found; null while it is loading, or an Error. */
  findings(run) {
    const monitor = this._stack(run);
    return monitor ? this.found.get({ run, monitor: monitor.monitor }, monitor.last.join()) : null;
  }

  /** The finding whose cells the map frames, or null. */
  marked() {
    const { finding, run, stack } = this.state;
    return (finding && this.findings(run)?.findings?.find((f) => keyOf(f) === finding && f.stack === stack)) || null;
  }

  /** How many samples of a metric fit into so many bytes, as far as the metadata tells its size. */
  samplesOf(run, largest) {
    const heads = this._layers(run)?.heads ?? [];
    return limit(heads.length * Math.max(1, ...heads), largest);
  }

  /** Layers of a run's stack: heads and module of each layer; null until it is here. */
  _layers(run = this.state.run) {
    const metadata = this.runMetadata(run);
    return metadata?.model?.stacks?.[this.state.stack] ?? null;
  }

  runMetadata(run) {
    const monitor = this._stack(run)?.monitor;
    return monitor === undefined ? null : this.metadata.get(run, monitor);
  }

  module(layer) {
    return this._layers()?.modules?.[layer] ?? "";
  }

  /** Whether the model of a run has a cell, as far as its metadata tells. */
  exists(run = this.state.run, spec = this.spec) {
    const heads = this._layers(run)?.heads;
    if (!heads || !spec.axes.includes("head")) return null;
    return (layer, head) => layer >= heads.length || !heads[layer] || head < heads[layer];
  }

  sample() {
    const { steps } = this.series(this.state.run);
    return this.state.step === null ? steps.length - 1 : nearest(steps, this.state.step);
  }

  step() {
    return this.series(this.state.run).steps[this.sample()];
  }

  /** Goes to the sample nearest to a step; at the last one newer samples are followed. */
  goTo(step) {
    const { steps } = this.series(this.state.run);
    const sample = nearest(steps, step);
    this.update({ step: sample === steps.length - 1 ? null : steps[sample] });
  }

  /** Picks a cell that was clicked, as far as the metric and the model have one there. */
  pickCell(cell) {
    if (!cell) return;
    const head = this.spec.axes.includes("head") ? cell.col : null;
    if (head === null || !this.exists() || this.exists()(cell.row, head)) this.pick(cell.row, head);
  }

  pick(layer, head) {
    this.update({ picked: toggled(this.state.picked, layer, head) });
  }

  /** The value of a cell, a layer (`col` null) or the whole model (`cell` null) at a sample. */
  summary(series, sample, cell) {
    const size = series.layers * series.heads;
    const one = { ...series, steps: [0], values: series.values.subarray(sample * size, (sample + 1) * size) };
    return trace(one, cell?.row ?? null, cell?.col ?? null, this.spec.summary)[0];
  }

  /** The colours of a metric's values in these series. `shown` are the frames on screen. */
  scale(series, shown, spec = this.spec) {
    return this.scales.ofSeries(this.state, spec, series, shown);
  }

  /** The colours of values that were made of a metric's. */
  scaleOf(values) {
    return this.scales.ofValues(this.state, this.spec, values);
  }
}
