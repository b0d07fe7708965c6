// Rows of the table of runs: what the route `runs` sends, in order and filtered. No DOM: these run under `node --test`.
//
// A column is known by its key: "run", "verdict", "loss", "score", "last entropy", "change entropy", "hp lr".

import { LEVELS } from "./findings.js";

const SEVERITY = Object.keys(LEVELS);
const SEED = /(^|[^a-z])(random_?)?seed$/i; // names of hyperparameters
const IN_NAME = /(^|[^a-z])seed[-_= .]?\d+/i; // in names of runs

/** What the route `runs` sends; maps, as names come from users. A number that is absent is NaN. */
export function readRows({ rows, pending, stamp }) {
  return { pending, stamp, rows: rows.map((row) => ({
    ...row,
    values: new Map(row.values.map(([name, firstStep, first, lastStep, last]) => [name, { firstStep, first: first ?? NaN, lastStep, last: last ?? NaN }])),
    hyperparameters: new Map(row.hyperparameters),
  })) };
}

/** The value of a row in a column: a number, a text, a boolean, or undefined where it has none. */
export function valueOf(row, key) {
  const [kind, name] = split(key);
  if (kind === "run") return row.run;
  if (kind === "verdict") return row.verdict ? SEVERITY.indexOf(row.verdict.level) : undefined;
  if (kind === "hp") return row.hyperparameters.get(name);
  let value = row[kind]?.[2] ?? undefined; // loss and score: [tag, step, value]
  const ends = row.values.get(name);
  if (kind === "last") value = ends?.last;
  if (kind === "change") value = ends && ends.last - ends.first;
  return Number.isFinite(value) ? value : undefined;
}

/** Kind and name of a column's key. */
export function split(key) {
  const at = key.indexOf(" ");
  return at < 0 ? [key, ""] : [key.slice(0, at), key.slice(at + 1)];
}

/** Rows by a column, absent values last whichever way; `sort` is "up" or "down" and the column's key, or empty. */
export function sorted(rows, sort) {
  const [way, key] = split(sort);
  if (!key) return rows;
  const sign = way === "down" ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [x, y] = [valueOf(a, key), valueOf(b, key)];
    if (x === undefined || y === undefined) return Number(x === undefined) - Number(y === undefined);
    if (typeof x === "number" && typeof y === "number") return sign * (x - y);
    return sign * String(x).localeCompare(String(y), "en", { numeric: true });
  });
}

/** How the table is sorted after a click on a column. */
export function toggledSort(sort, key) {
  return sort === `up ${key}` ? `down ${key}` : sort === `down ${key}` ? "" : `up ${key}`;
}

/** Names of hyperparameters that differ between rows, one that some rows lack among them; seeds last. */
export function differing(rows) {
  const names = new Set(rows.flatMap(({ hyperparameters }) => [...hyperparameters.keys()]));
  const found = [...names].filter((name) => new Set(rows.map(({ hyperparameters }) => hyperparameters.get(name))).size > 1);
  return [...found.filter((name) => !SEED.test(name)), ...found.filter((name) => SEED.test(name))];
}

/** The tag of an outcome, `loss` or `score`, where all runs that have one share it; null for several, "" for none. */
export function tagOf(rows, role) {
  const tags = new Set(rows.map((row) => row[role]?.[0]).filter((tag) => tag !== undefined));
  return tags.size > 1 ? null : [...tags][0] ?? "";
}

/**
 * Groups of runs that differ in their seed alone: `{runs, why}`, two runs or more each.
 *
 * They have the same hyperparameters but for one called seed; without such a one also the same name but for numbers.
 * Of runs without hyperparameters, names that differ in the number after "seed" tell.
 */
export function seedGroups(rows) {
  const groups = new Map();
  for (const { run, hyperparameters } of rows) {
    const found = why(run, hyperparameters);
    if (!found) continue;
    const [reason, ...key] = found;
    const group = groups.get(JSON.stringify(found)) ?? { runs: [], why: reason };
    groups.set(JSON.stringify([reason, ...key]), { ...group, runs: [...group.runs, run] });
  }
  return [...groups.values()].filter(({ runs }) => runs.length > 1);
}

/** Why a run belongs to a group, and what it shares with the others of it; null for none. */
function why(run, hyperparameters) {
  const names = [...hyperparameters.keys()].sort();
  const shared = names.filter((name) => !SEED.test(name)).map((name) => [name, hyperparameters.get(name)]);
  if (shared.length < names.length) return ["same hyperparameters but for the seed", shared];
  if (names.length) return ["same hyperparameters, and names that differ in numbers", shared, run.replaceAll(/\d+/g, "#")];
  return IN_NAME.test(run) ? ["names that differ in the seed", run.replace(IN_NAME, "$1#")] : null;
}

/**
 * The mean of lines `{xs, ys}` with their lowest and highest (`low`, `high`), at the steps that all have; null where
 * they share less than two. It is absent where one of them is.
 */
export function meanOf(lines) {
  const [first, ...rest] = lines.map(({ xs, ys }) => new Map(Array.from(xs, (x, i) => [x, ys[i]])));
  const xs = [...first.keys()].filter((x) => rest.every((line) => line.has(x)));
  if (xs.length < 2) return null;
  const at = xs.map((x) => [first, ...rest].map((line) => line.get(x)));
  const known = (values, make) => (values.every(Number.isFinite) ? make(values) : NaN);
  return {
    xs,
    ys: Float64Array.from(at, (values) => known(values, (all) => all.reduce((a, b) => a + b) / all.length)),
    low: Float64Array.from(at, (values) => known(values, (all) => Math.min(...all))),
    high: Float64Array.from(at, (values) => known(values, (all) => Math.max(...all))),
  };
}
