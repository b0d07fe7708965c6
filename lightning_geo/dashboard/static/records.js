// What is known of the runs: their metrics, findings and models, asked for when they are needed first.

import { Cache, Metadata, Rows, fetchFindings, fetchHead, limit } from "./api.js";
import { keyOf } from "./findings.js";
import { RunColours } from "./run_colours.js";
import { stackOf } from "./state.js";

/** A metric that a run does not have. */
class Absent extends Error {}

/** The page's data. Who extends it has `state`, the `spec` of its metric, and `schedule`, called when something came. */
export class Records {
  constructor() {
    this.index = { runs: [], metrics: [] };
    this.metadata = new Metadata(() => this.schedule());
    this.cache = new Cache(() => this.schedule());
    this.found = new Cache(() => this.schedule(), fetchFindings);
    this.heads = new Cache(() => this.schedule(), fetchHead);
    this.rows = new Rows(() => this.schedule());
    this.colours = new RunColours();
  }

  /** Takes TensorBoard's list of runs: it sets their colours. */
  listed(runs) {
    this.colours.update(runs);
    this.schedule();
  }

  _stack(run, monitor = this.state.monitor) {
    const found = this.index.runs.find((r) => r.run === run)?.monitors;
    return found?.find((m) => m.monitor === monitor) ?? found?.[0];
  }

  _got(run, metric = this.state.metric, samples = 0, name = this.state.stack) {
    const monitor = this._stack(run);
    const stack = stackOf(monitor, name);
    if (!stack?.metrics.includes(metric)) return new Absent(`Run ${run} has no ${metric} in stack ${name}.`);
    if (!this.runMetadata(run)) return null; // it tells how large a sample is
    const request = { run, monitor: monitor.monitor, stack: stack.stack, metric, samples: samples || this.samplesOf(run) };
    return this.cache.get(request, monitor.last.join());
  }

  /** The samples of a metric in a run, or null until they are here. */
  series(run, metric, samples, stack) {
    const got = this._got(run, metric, samples, stack);
    return got instanceof Error || !got?.steps.length ? null : got;
  }

  /** Why a metric's samples are not here; empty while they are loading too. */
  error(run, metric, samples) {
    const got = this._got(run, metric, samples);
    if (got instanceof Error) return got instanceof Absent ? got.message : `${metric ?? this.state.metric} could not be read (${got.message}). The page asks again.`;
    return got && !got.steps.length ? `${metric ?? this.state.metric} has no sample yet.` : "";
  }

  metricNames(run = this.state.run) {
    return stackOf(this._stack(run), this.state.stack)?.metrics ?? [];
  }

  /** What a run's monitor found; null while it is loading, or an Error. */
  findings(run) {
    const monitor = this._stack(run);
    return monitor ? this.found.get({ run, monitor: monitor.monitor }, monitor.last.join()) : null;
  }

  /** Where a head looks over a run, see `decodeHead`; null while it is loading, or an Error. */
  headRecord(run, { layer, head }) {
    const monitor = this._stack(run);
    const stack = stackOf(monitor, this.state.stack);
    return stack ? this.heads.get({ run, monitor: monitor.monitor, stack: stack.stack, layer, head }, monitor.last.join()) : null;
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

  /** How many heads each layer of the run A's stack has; null until it is known. */
  headsOf() {
    return this._layers()?.heads ?? null;
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
}
