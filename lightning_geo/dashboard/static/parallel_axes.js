// Axes of parallel coordinates: where the values of runs lie on them. No DOM: these run under `node --test`.

import { exact, number } from "./format.js";
import { split, valueOf } from "./run_rows.js";

const DECADES = 20; // from the lowest to the highest of positive numbers: from there on logarithmic
const FEW = 6; // values of a hyperparameter that stand at its axis themselves
const SPACE = 0.08; // of an axis beyond its categories

/** An axis for each column by which rows differ: `{key, kind, low, high}` or `{key, kind: "category", values}`. */
export function axesOf(rows, keys) {
  return keys.map((key) => axisOf(key, rows.map((row) => valueOf(row, key)).filter((value) => value !== undefined))).filter(Boolean);
}

function axisOf(key, values) {
  const different = [...new Set(values)];
  if (different.length < (split(key)[0] === "hp" ? 1 : 2)) return null;
  if (!values.every((value) => typeof value === "number")) {
    const names = [...new Set(different.map(String))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    return { key, kind: "category", values: names };
  }
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const kind = split(key)[0] !== "change" && low > 0 && high / low >= DECADES ? "log" : "number";
  return { key, kind, low, high, values: split(key)[0] === "hp" && different.length <= FEW ? different : null };
}

/** Where a value lies on an axis, from 0 at the bottom to 1 at the top; null where it has none. */
export function placeOn(axis, value) {
  if (value === undefined) return null;
  if (axis.kind === "category") {
    const at = axis.values.indexOf(String(value));
    return at < 0 ? null : axis.values.length > 1 ? SPACE + (at / (axis.values.length - 1)) * (1 - 2 * SPACE) : 0.5;
  }
  if (typeof value !== "number") return null;
  const there = axis.kind === "log" ? Math.log : (x) => x;
  return axis.high > axis.low ? (there(value) - there(axis.low)) / (there(axis.high) - there(axis.low)) : 0.5;
}

/** What stands at an axis: `[place, text]` each. */
export function marksOf(axis, count = 5) {
  if (axis.kind === "category") return axis.values.map((value) => [placeOn(axis, value), value]);
  if (!(axis.high > axis.low)) return [[0.5, number(axis.low)]];
  if (axis.values) return axis.values.map((value) => [placeOn(axis, value), exact(value)]);
  const there = axis.kind === "log" ? [Math.log, Math.exp] : [(x) => x, (x) => x];
  const [low, high] = [axis.low, axis.high].map(there[0]);
  return Array.from({ length: count }, (_, i) => [i / (count - 1), number(there[1](low + (i / (count - 1)) * (high - low)))]);
}

/** Rows whose lines pass through all brushes, `[key, from, to]` in places; a brush on an axis that is not there is none. */
export function passing(rows, axes, brushes) {
  const held = brushes.map(([key, low, high]) => ({ axis: axes.find((axis) => axis.key === key), low, high })).filter(({ axis }) => axis);
  return rows.filter((row) => held.every(({ axis, low, high }) => {
    const place = placeOn(axis, valueOf(row, axis.key));
    return place !== null && place >= low - 1e-9 && place <= high + 1e-9;
  }));
}

/** Brushes with another one on an axis; null takes it away. */
export function brushed(brushes, key, ends) {
  const rest = brushes.filter(([name]) => name !== key);
  return ends ? [...rest, [key, Math.min(...ends), Math.max(...ends)]] : rest;
}

/** A brush moved by a key: ↑ ↓ move its lower end by a tenth, with shift its upper one; null for a key that does not. */
export function moved(brush, key, shift) {
  const step = { ArrowUp: 0.1, ArrowDown: -0.1 }[key];
  if (!step) return null;
  let [low, high] = brush ?? [0, 1];
  const clear = (value) => Math.round(10 * Math.min(1, Math.max(0, value))) / 10;
  if (shift) high = Math.max(low, clear(high + step));
  else low = Math.min(high, clear(low + step));
  return [low, high];
}

/** The polyline nearest to a point: the index of `lines`, each the height at each axis or null, or -1 beyond `reach`. */
export function nearestLine(lines, xs, x, y, reach) {
  const right = xs.findIndex((at) => at >= x);
  const [from, to] = right < 0 ? [xs.length - 1, xs.length - 1] : [Math.max(0, right - 1), right];
  const share = to > from ? (x - xs[from]) / (xs[to] - xs[from]) : 0;
  let [best, least] = [-1, reach];
  lines.forEach((heights, i) => {
    if (heights[from] === null || heights[to] === null) return;
    const away = Math.abs(heights[from] + share * (heights[to] - heights[from]) - y);
    if (away < least) [best, least] = [i, away];
  });
  return best;
}
