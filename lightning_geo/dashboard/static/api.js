// What the server knows, and a cache of the metrics that were looked at.

import { read } from "./curves.js";
import { decodeHead } from "./patterns.js";
import { readRows } from "./run_rows.js";
import { continued, decode } from "./series.js";

const BUDGET = 384 * 2 ** 20; // bytes of values that the page holds
const LARGEST = 96 * 2 ** 20; // bytes of one metric; of a longer one fewer samples are asked for

async function get(route, query = {}) {
  // relative to the page's <base>, so that TensorBoard works under any prefix
  const response = await fetch(`./${route}?${new URLSearchParams(query)}`);
  if (!response.ok) throw new Error(`${response.status}: ${(await response.text()).slice(0, 300)}`);
  return response;
}

export async function fetchIndex() {
  return (await get("index")).json();
}

export async function fetchFindings({ run, monitor }) {
  return (await get("findings", { run, monitor })).json();
}

/** Where one head looks, and its twins, see `patterns.js`. */
export async function fetchHead(request) {
  return decodeHead(await (await get("head", request)).arrayBuffer());
}

/** What a run logged beside its geometry, see `curves.js`; `held` itself where nothing is new. */
export async function fetchCurves({ run, monitors, ...choices }, held) {
  const query = [["run", run], ...monitors.map((monitor) => ["monitor", monitor]), ...Object.entries(choices)];
  const sent = await (await get("curves", held?.stamp ? [...query, ["stamp", held.stamp]] : query)).json();
  return sent.unchanged ? held : read(sent);
}

/** A row for each run, see `run_rows.js`; `held` itself where nothing is new. */
async function fetchRows({ metrics, ...choices }, held) {
  const query = [...Object.entries(choices), ...metrics.map((metric) => ["metric", metric])];
  const sent = await (await get("runs", held?.stamp ? [...query, ["stamp", held.stamp]] : query)).json();
  return sent.unchanged ? held : readRows(sent);
}

/** The rows of runs. While some are not complete more is asked for at once: the server reads for a moment each time. */
export class Rows {
  constructor(onchange, load = fetchRows) {
    this.cache = new Cache(onchange, load);
    this.version = 0;
  }

  /** The rows, null while they are loading for the first time, or an Error. */
  get(request) {
    const got = this.cache.get(request, this.version);
    if (!got?.pending || got === this.incomplete) return got;
    this.incomplete = got;
    this.version++;
    return this.cache.get(request, this.version);
  }

  retry() {
    this.version++;
  }
}

async function fetchMetadata(run, monitor) {
  return (await get("metadata", { run, monitor })).json();
}

/** The metadata of monitors by run. What could not be had is empty, and asked for again after each `retry`. */
export class Metadata {
  constructor(onchange, load = fetchMetadata) {
    this.onchange = onchange;
    this.load = load;
    this.entries = new Map();
    this.failed = new Set();
    this.due = new Set();
  }

  /** The metadata, or null while it is loading for the first time. */
  get(run, monitor) {
    const key = JSON.stringify([run, monitor]);
    if (!this.entries.has(key)) {
      this.entries.set(key, null);
      this._fill(key, run, monitor);
    } else if (this.due.delete(key)) {
      this._fill(key, run, monitor); // what is empty is shown until then: a page that flickers helps nobody
    }
    return this.entries.get(key);
  }

  async _fill(key, run, monitor) {
    let metadata = {}; // a record without readable metadata is shown all the same
    try {
      metadata = await this.load(run, monitor);
    } catch {
      this.failed.add(key);
    }
    this.entries.set(key, metadata);
    this.onchange();
  }

  /** TensorBoard may have been starting, or away for a moment. */
  retry() {
    for (const key of this.failed) this.due.add(key);
    this.failed.clear();
  }
}

/** How many samples of a metric to ask for. */
export function limit(cells, largest = LARGEST) {
  return Math.max(2, Math.floor(largest / 4 / Math.max(cells, 1)));
}

/** Series by request, the least recently used dropped first. What is out of date is shown until the new is here. */
export class Cache {
  constructor(onchange, load = loadSeries, budget = BUDGET) {
    this.onchange = onchange;
    this.load = load;
    this.budget = budget;
    this.entries = new Map();
  }

  /** The series, null while it is loading, or an Error. `version` tells whether there are newer samples. */
  get(request, version) {
    const key = JSON.stringify(request);
    let entry = this.entries.get(key);
    if (!entry) entry = { series: null, version: null, loading: false };
    this.entries.delete(key); // last in the order: used most recently
    this.entries.set(key, entry);
    if (entry.version !== version && !entry.loading) this._fill(entry, request, version);
    return entry.series;
  }

  async _fill(entry, request, version) {
    entry.loading = true;
    try {
      entry.series = await this.load(request, entry.series instanceof Error ? null : entry.series);
      entry.failed = false;
    } catch (error) {
      entry.failed = true;
      if (!entry.series || entry.series instanceof Error) entry.series = error;
    }
    entry.version = version;
    entry.loading = false;
    this._shrink(entry);
    this.onchange();
  }

  /** Asks again for what could not be had. */
  retry() {
    for (const entry of this.entries.values()) if (entry.failed) entry.version = null;
  }

  bytes() {
    let sum = 0;
    for (const { series } of this.entries.values()) sum += series?.values?.byteLength ?? 0;
    return sum;
  }

  _shrink(kept) {
    for (const [key, entry] of this.entries) {
      if (this.bytes() <= this.budget) return;
      if (entry !== kept && !entry.loading) this.entries.delete(key);
    }
  }
}

/** Fetches a series; of one that is held, what has come since. */
async function loadSeries(request, held) {
  const query = held?.stamp ? { ...request, held: held.steps.length, stamp: held.stamp } : request;
  const got = decode(await (await get("data", query)).arrayBuffer());
  if (!got.first) return got;
  return continued(held, got) ?? loadSeries(request, null);
}
