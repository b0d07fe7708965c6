// What is looked at, as text that fits in an address. No DOM: these run under `node --test`.

import { encodeHead, headIn } from "./patterns.js";

export const VIEWS = ["summary", "evolution", "map", "compare", "runs", "trace", "overview"];

export const START = {
  view: "summary",
  run: "",
  other: "", // run B
  monitor: "",
  stack: "",
  metric: "",
  step: null, // null: the newest sample, also while more come in
  range: "run", // colours of the whole run or this step, outliers beyond; of the full range; or as the metric is bounded
  change: false, // since the first sample, in place of the value
  align: "step", // or "fraction" of training
  heads: "", // what stands for a layer's heads: "mean", "min", "max", "spread"; "" as the metric's definition says
  inspected: null, // {layer, head} in the drawer
  finding: "", // whose cells the map frames
  loss: "", // curves of the run strip: "" is found by its name, "-" none, "=tag" that tag
  score: "",
  rate: "",
  picked: [], // [{layer, head}], head null for a whole layer
  shown: null, // names of the runs that have a line and a picture in Runs, null for the first
  columns: null, // metrics of its table, null for the first headline metrics
  sort: "", // "up" or "down" and the key of a column
  seeds: "mean", // runs that differ in their seed are one line, or "each"
  picture: "steps", // of each run: layers over steps, or "heads" at one step
  brush: [], // [axis, from, to]: runs whose line passes there
};

const CHOICES = { view: VIEWS, range: ["run", "step", "full", "fixed"], align: ["step", "fraction"], heads: ["", "mean", "min", "max", "spread"], seeds: ["mean", "each"], picture: ["steps", "heads"] };
const TEXTS = ["run", "other", "monitor", "stack", "metric", "finding", "loss", "score", "rate", "sort"];

const LISTS = ["shown", "columns"];
const MANY = 200;

export function encode(state) {
  const query = new URLSearchParams();
  for (const name of [...Object.keys(CHOICES), ...TEXTS]) if (state[name] !== START[name]) query.set(name, state[name]);
  if (state.step !== null) query.set("step", state.step);
  if (state.change) query.set("change", "1");
  if (state.inspected) query.set("head", encodeHead(state.inspected));
  if (state.picked.length) query.set("picked", state.picked.map(({ layer, head }) => `${layer}.${head ?? ""}`).join("_"));
  for (const name of LISTS) for (const item of state[name]?.length === 0 ? [""] : state[name] ?? []) query.append(name, item);
  for (const range of state.brush) query.append("brush", JSON.stringify(range));
  return query.toString();
}

/** The reverse; what does not make sense is left as it is at the start. */
export function decodeState(text) {
  const query = new URLSearchParams(text);
  const state = { ...START };
  for (const name of TEXTS) state[name] = query.get(name) ?? START[name];
  for (const [name, allowed] of Object.entries(CHOICES)) if (allowed.includes(query.get(name))) state[name] = query.get(name);
  if (/^\d{1,15}$/.test(query.get("step") ?? "")) state.step = Number(query.get("step"));
  state.change = query.get("change") === "1";
  state.inspected = headIn(query.get("head"));
  const cells = (query.get("picked") ?? "").split("_").map((cell) => /^(\d{1,4})\.(\d{0,4})$/.exec(cell));
  state.picked = cells.filter(Boolean).slice(0, 16).map(([, layer, head]) => ({ layer: Number(layer), head: head ? Number(head) : null }));
  for (const name of LISTS) if (query.has(name)) state[name] = query.getAll(name).filter(Boolean).slice(0, MANY);
  state.brush = query.getAll("brush").map(range).filter(Boolean).slice(0, MANY);
  return state;
}

function range(text) {
  try {
    const [axis, low, high] = JSON.parse(text);
    return typeof axis === "string" && Number.isFinite(low) && Number.isFinite(high) ? [axis, low, high] : null;
  } catch {
    return null;
  }
}

/** What stands for a layer's heads. */
export function summaryOf({ heads }, spec) {
  return heads && spec.axes.includes("head") ? heads : spec.summary;
}

/** Picks a cell, or drops it if it is picked. */
export function toggled(picked, layer, head) {
  const rest = picked.filter((cell) => cell.layer !== layer || cell.head !== head);
  return rest.length < picked.length ? rest : [...picked.slice(-15), { layer, head }];
}

/** Moves what is chosen to something that is there: the first run, stack and headline metric otherwise. */
export function settled(state, index) {
  const runs = index.runs;
  const run = runs.find((r) => r.run === state.run) ?? runs[0];
  if (!run) return state;
  const monitor = run.monitors.find((m) => m.monitor === state.monitor) ?? run.monitors[0];
  const stack = monitor.stacks.find((s) => s.stack === state.stack) ?? monitor.stacks[0];
  const headline = index.metrics.find((m) => m.headline && stack.metrics.includes(m.name))?.name;
  return {
    ...state,
    run: run.run,
    other: runs.some((r) => r.run === state.other) ? state.other : "",
    monitor: monitor.monitor,
    stack: stack.stack,
    metric: stack.metrics.includes(state.metric) ? state.metric : headline ?? stack.metrics[0],
  };
}

/** A monitor's stack of a name; its only one whatever the name. */
export function stackOf(monitor, name) {
  return monitor?.stacks.find((s) => s.stack === name) ?? (monitor?.stacks.length === 1 ? monitor.stacks[0] : null);
}
