// The page: what is chosen, what is loaded, and the view that shows it.

import { fetchIndex } from "./api.js";
import { Voice } from "./cell_cursor.js";
import { choice, el } from "./dom.js";
import { exportCsv, exportPng } from "./export.js";
import { Heading } from "./heading.js";
import { followTheme, linkTo, listen, readView, writeView } from "./host.js";
import { forgetTheme } from "./paper.js";
import { Player } from "./player.js";
import { Records } from "./records.js";
import { roving, watchFocus } from "./roving.js";
import { RunStrip } from "./run_strip.js";
import { Scales } from "./scales.js";
import { nearest, trace } from "./series.js";
import { Sidebar } from "./sidebar.js";
import { VIEWS, decodeState, encode, settled, toggled } from "./state.js";
import { cellName } from "./trace_panel.js";
import { VIEW_TYPES } from "./views.js";

const POLL = 5000; // milliseconds: TensorBoard's own default for reading new events

export class App extends Records {
  constructor(root) {
    super();
    this.wanted = decodeState(readView()); // what was chosen; what of it is not there (yet) gives way
    this.state = this.wanted;
    this.scales = new Scales();
    this.voice = new Voice();
    this.views = Object.fromEntries(Object.entries(VIEW_TYPES).map(([name, View]) => [name, new View(this)]));
    this.tabs = choice("view", VIEWS.map((name) => [name, name[0].toUpperCase() + name.slice(1), VIEW_TYPES[name].hint]), (view) => this.update({ view, ...this._opening(view) }));
    roving(this.tabs.element, "across");
    this.sidebar = new Sidebar(this);
    root.append(this.voice.element);
    this.strip = new RunStrip(this);
    this.player = new Player(this);
    this.heading = new Heading();
    this.message = el("div", { class: "message", role: "status" });
    this.stage = el("div", { class: "stage" });
    root.append(
      el("div", { class: "page" },
        this.sidebar.element,
        el("main", {},
          el("header", {}, this.tabs.element, this.sidebar.options, this._buttons()),
          this.heading.element, this.message, this.stage, this.strip.element, this.player.element)));
    watchFocus();
    followTheme(() => {
      forgetTheme();
      this.schedule();
    });
    new ResizeObserver(() => this.schedule()).observe(this.stage);
    listen({ reloaded: () => this.reload(), runs: (names) => this.listed(names) });
    setInterval(() => document.hidden || this.reload(), POLL);
    this.reload();
  }

  /** What a view opens with where no metric was chosen: what is worst or has changed most. */
  _opening(view) {
    if (this.state.view !== "summary" || this.wanted.metric || view === "overview") return {};
    const { metric, stack, why } = this.views.summary.leading() ?? {};
    this.opened = metric ? { metric, run: this.state.run, why } : null;
    return metric ? { metric, stack } : {};
  }

  /** Why a view opened with the metric that it shows; empty if that was chosen. */
  why() {
    const { metric, run } = this.state;
    return this.opened?.metric === metric && this.opened.run === run ? this.opened.why : "";
  }

  _buttons() {
    const button = (text, title, onclick) => el("button", { type: "button", title, onclick }, text);
    this.link = button("Link", "Copy an address that leads to this view", () => this._copy());
    return roving(el("div", { class: "buttons" },
      button("PNG", "Save the picture", () => exportPng(this)),
      button("CSV", "Save the numbers shown", () => exportCsv(this)),
      this.link), "across");
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
      for (const kept of [this.metadata, this.cache, this.found, this.heads, this.rows, this.strip]) kept.retry();
    } catch (error) {
      this.failure = `Lost the connection to TensorBoard (${error.message}).`;
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
    const ready = this.spec && (view.timeless || view.patient || (this.series(state.run) && !this.error(state.run)));
    this.stage.style.visibility = ready ? "visible" : "hidden";
    this.player.paint(view.timeless);
    this.strip.paint(view.timeless);
    if (ready) view.paint();
    this.message.textContent = this._trouble(view);
    clearTimeout(this.saving);
    // not while TensorBoard is still reading the run that an address asks for
    if ([state.run, ""].includes(this.wanted.run)) this.saving = setTimeout(() => writeView(encode(view.timeless ? { ...this.state, metric: this.wanted.metric } : this.state)), 400);
  }

  _trouble(view) {
    if (this.failure) return this.failure;
    if (!this.loaded) return "Loading…";
    if (!this.spec) return "No geometry data in this log directory. Did you add GeometryMonitor to the Trainer's callbacks?";
    if (view.timeless) return "";
    const error = this.error(this.state.run) || (this.state.other && this.error(this.state.other));
    if (error) return error;
    if (!this.series(this.state.run)) return "Loading…";
    return view.notice?.() ?? "";
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
    const held = this.state.picked.some((cell) => cell.layer === layer && cell.head === head);
    this.voice.say(`${cellName({ layer, head })} ${held ? "is pinned" : "is no longer pinned"}`);
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
