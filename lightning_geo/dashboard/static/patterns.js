// Where one head looks, as the record keeps it. No DOM: these run under `node --test`.

import { middle } from "./format.js";
import { nearest } from "./series.js";

const [LARGEST, ABSENT] = [254, 255]; // bytes of attention 1, and of a cell without a value
const GATES = ["open", "closed", "instance", "backward", "forward", "directional", "cluster"];
const LONGEST = 40; // letters of the words of a cell

/**
 * Reads what the route `head` sends: length of the header, header, a byte for each cell of each sample. A sample gets
 * `roots`, the root of attention by cell, which its colours show, and `words`, null where nobody knows them.
 */
export function decodeHead(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const values = new Uint8Array(buffer, 4 + length);
  let at = 0;
  const samples = header.samples.map(({ step, side, length: tokens, tokens: list }) => {
    const codes = values.subarray(at, (at += side * side));
    const roots = Float32Array.from(codes, (code) => (code === ABSENT ? NaN : code / LARGEST));
    return { step, side, length: tokens, words: header.tokens[list] ?? null, roots };
  });
  return { samples, twins: header.twins, kept: header.kept, values };
}

/** The samples to show at a step: the first, the nearest, the last; one alone where there is only one. */
export function shownAt({ samples }, step) {
  if (samples.length < 2) return samples.map((sample) => [sample, "first and last"]);
  const at = nearest(samples.map((sample) => sample.step), step);
  return [[samples[0], "first"], [samples[at], "chosen"], [samples[samples.length - 1], "last"]];
}

/** First and last token of a cell's block: token k is in block ⌊k · side / length⌋. */
export function span(cell, { side, length }) {
  return [Math.ceil((cell * length) / side), Math.ceil(((cell + 1) * length) / side) - 1];
}

/** A cell's tokens: their numbers, and their words where they are known. */
export function named(cell, sample) {
  const [from, to] = span(cell, sample);
  const words = sample.words ? ` “${middle(sample.words.slice(from, to + 1).join(" "), LONGEST)}”` : "";
  return `${from === to ? from : `${from}–${to}`}${words}`;
}

/** What a cell says, in three parts: from where, to where, how much. */
export function told({ row, col }, sample) {
  const many = sample.length > sample.side;
  const attention = sample.roots[row * sample.side + col] ** 2;
  return [`${many ? "queries" : "query"} ${named(row, sample)}`, `${many ? "keys" : "key"} ${named(col, sample)}`, attention];
}

/** The gate of a head by its margins, as `gate_labels` tells it; empty where a margin is missing. */
export function gateOf(margins) {
  const known = GATES.map((gate) => margins[gate]);
  if (!known.every(Number.isFinite)) return "";
  const best = Math.max(...known);
  return best < 0 ? "mixed" : GATES[known.indexOf(best)];
}

/** The most like head of the layer at the sample nearest to a step that says which; null where none does. */
export function twinAt({ twins }, step) {
  const at = nearest(twins.map((twin) => twin.step), step);
  return at < 0 ? null : twins[at];
}

/** What stands for an inspected head in an address, and back. */
export function encodeHead({ layer, head }) {
  return `${layer}.${head}`;
}

export function headIn(text) {
  const found = /^(\d{1,4})\.(\d{1,4})$/.exec(text ?? "");
  return found && { layer: Number(found[1]), head: Number(found[2]) };
}
