// How far values spread: quantiles, and the ends of a colour scale that one outlier does not move. No DOM.

import { extent } from "./series.js";

const SHARES = [0.02, 0.98];
const NEAR = 0.5; // of the distance between the two: what lies beyond them by less is no outlier
const HALF = 0x10000;

// float32 numbers as integers of the same order: the sign's bit is turned, and all bits of negative numbers
const keyOf = (bits) => (bits >>> 31 ? ~bits : bits | 0x80000000) >>> 0;
const bitsOf = (value) => new Uint32Array(Float32Array.of(value).buffer)[0];
const valueOf = (key) => new Float32Array(Uint32Array.of(key >>> 31 ? key & 0x7fffffff : ~key).buffer)[0];
const isKnown = (bits) => (bits & 0x7f800000) !== 0x7f800000;

/** The bin that holds the value of a rank, and its rank there. */
function find(counts, rank) {
  let bin = 0;
  while (rank >= counts[bin]) rank -= counts[bin++];
  return { bin, rank };
}

/**
 * The values of a Float32Array below which shares of the finite ones lie, of those above `above`; null for none.
 *
 * Exact and without sorting, so that a million values take milliseconds: the upper halves of their bits are
 * counted first, then the lower halves of those that share the upper one with a result.
 */
export function quantiles(values, shares, above = -Infinity) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const floor = keyOf(bitsOf(above));
  const upper = new Uint32Array(HALF);
  let count = 0;
  for (let i = 0; i < bits.length; i++) {
    const key = keyOf(bits[i]);
    if (key <= floor || !isKnown(bits[i])) continue;
    upper[key >>> 16]++;
    count++;
  }
  if (!count) return null;
  const places = shares.map((share) => find(upper, Math.round(share * (count - 1))));
  const slots = new Uint8Array(HALF); // of each upper half, the number of its counts; 0 for none
  const lower = [null];
  for (const { bin } of places) if (!slots[bin]) slots[bin] = lower.push(new Uint32Array(HALF)) - 1;
  for (let i = 0; i < bits.length; i++) {
    const key = keyOf(bits[i]);
    if (slots[key >>> 16] && key > floor && isKnown(bits[i])) lower[slots[key >>> 16]][key & 0xffff]++;
  }
  return places.map(({ bin, rank }) => valueOf(bin * HALF + find(lower[slots[bin]], rank).bin));
}

/** Lowest and highest of the values between two ends; of `bounds` where there are none. */
function within(values, low, high, bounds) {
  let [least, most] = [Infinity, -Infinity];
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value >= low && value < least) least = value;
    if (value <= high && value > most) most = value;
  }
  return [Math.min(least, bounds[0]), Math.max(most, bounds[1])];
}

/**
 * Where a scale of values begins and ends, `low` and `high`, and the extremes: `least` and `most` of all values,
 * `lowest` of those that have a place on it; null without values. It goes from the 2nd to the 98th percentile, and
 * on to values that lie near: only outliers are beyond.
 *
 * `from` is the number from which on logarithms are compared, of values above it; null for the values themselves.
 */
export function spreadOf(values, from = null) {
  const ends = extent(values);
  if (!ends) return null;
  const [least, most] = ends;
  const found = quantiles(values, [0, ...SHARES], from ?? -Infinity);
  if (!found) return { low: least, high: most, lowest: least, least, most };
  const [there, back] = from === null ? [(x) => x, (x) => x] : [(x) => Math.log(x - from), (x) => Math.exp(x) + from];
  const [lowest, ...middle] = found;
  const [start, end] = middle.map(there);
  const reach = NEAR * (end - start);
  const [low, high] = reach ? within(values, back(start - reach), back(end + reach), middle) : [lowest, most];
  return { low, high, lowest, least, most };
}

/** The spread of several, null among them. */
export function joined(spreads) {
  const given = spreads.filter(Boolean);
  if (!given.length) return null;
  const lowest = (name) => Math.min(...given.map((spread) => spread[name]));
  const highest = (name) => Math.max(...given.map((spread) => spread[name]));
  return { low: lowest("low"), high: highest("high"), lowest: lowest("lowest"), least: lowest("least"), most: highest("most") };
}
