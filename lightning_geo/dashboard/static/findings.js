// What a monitor found, as the page says and draws it. No DOM: these run under `node --test`.
//
// A finding is { rule, severity, metric, stack, layers, heads: [[layer, head]], since_step, until_step, value, usual,
// message, causes, next }, as the route `findings` sends it.

import { number } from "./format.js";

/** How severe it is: a sign and a word, so that nothing is said by colour alone. From the least severe. */
export const LEVELS = {
  well: { sign: "✔", word: "Nothing unusual" },
  unknown: { sign: "?", word: "Not known" },
  note: { sign: "●", word: "Note" },
  warning: { sign: "▲", word: "Warning" },
  critical: { sign: "✖", word: "Critical" },
};

const ORDER = Object.keys(LEVELS);

/** The more severe first; of equals the order stays. */
export function bySeverity(items) {
  return [...items].sort((a, b) => ORDER.indexOf(b.level) - ORDER.indexOf(a.level));
}

/** What tells a finding from the others of its run; fits in an address. */
export function keyOf({ rule, stack, since_step: since }) {
  return [since, stack, rule].join(" ");
}

/** What to look at: the map of a finding's metric at the step where it began, with its cells framed. */
export function mapOf(finding) {
  const { metric, stack, since_step: step } = finding;
  return { view: "map", step, change: false, stack, finding: keyOf(finding), ...(metric ? { metric } : {}) };
}

/** A rule's name as words. */
export function title(rule) {
  const words = rule.replaceAll("_", " ");
  return words.slice(0, 1).toUpperCase() + words.slice(1);
}

export function span({ since_step: since, until_step: until }) {
  return until === null ? `since step ${since}` : `from step ${since} to ${until}, ended`;
}

/** A verdict in a few words: the worst open finding, where, since when. */
export function inShort({ level, findings, verdict }) {
  const [worst] = findings.filter((f) => f.until_step === null);
  if (!worst) return level === "unknown" ? (findings.length ? verdict : "not looked for") : findings.length ? "nothing unusual any more" : "nothing unusual";
  const where = layersText(worst.layers);
  return `${LEVELS[worst.severity].word.toLowerCase()} since step ${worst.since_step}${where ? `, ${where}` : ""}`;
}

/** The metric's value beside what is usual; empty for a finding without a metric. */
export function evidence({ metric, value, usual: [low, high] }) {
  if (!metric) return "";
  let usual = `${number(low)} to ${number(high)}`;
  if (low === high) usual = low === null ? "not known" : number(low);
  else if (high === null) usual = `${number(low)} or more`;
  else if (low === null) usual = `${number(high)} or less`;
  return `${metric} ${value === null ? "not finite" : number(value)}, usual ${usual}`;
}

/** `layer 3`, `layers 3 to 5`, `layers 0, 3 to 5 and 9`; the rest is counted where they are many. */
export function layersText(layers, most = 4) {
  const runs = [];
  for (const layer of layers) {
    const last = runs[runs.length - 1];
    if (last && layer === last[1] + 1) last[1] = layer;
    else runs.push([layer, layer]);
  }
  if (!runs.length) return "";
  if (runs.length === 1 && layers.length === 2) return `layers ${layers.join(" and ")}`;
  const parts = runs.slice(0, most).map(([first, last]) => (first === last ? `${first}` : `${first} to ${last}`));
  if (runs.length > most) parts.push("more");
  const text = parts.length > 1 ? `${parts.slice(0, -1).join(", ")} and ${parts[parts.length - 1]}` : parts[0];
  return `layer${layers.length > 1 ? "s" : ""} ${text}`;
}

/** Which cells of a [layers * heads] map show it: 1 for each; all of a layer's where it is of layers. */
export function cellsOf({ layers: rows, heads: cells }, layers, heads) {
  const mask = new Uint8Array(layers * heads);
  if (cells.length && heads > 1) {
    for (const [layer, head] of cells) if (layer >= 0 && layer < layers && head >= 0 && head < heads) mask[layer * heads + head] = 1;
  } else {
    for (const layer of rows) if (layer >= 0 && layer < layers) mask.fill(1, layer * heads, (layer + 1) * heads);
  }
  return mask;
}

/** The mean of a series' cells at each sample, of those with a value. */
export function meanOver(series, mask) {
  const size = series.layers * series.heads;
  return Float64Array.from(series.steps, (_, sample) => {
    let [sum, count] = [0, 0];
    for (let i = 0; i < size; i++) {
      const value = series.values[sample * size + i];
      if (mask[i] && Number.isFinite(value)) [sum, count] = [sum + value, count + 1];
    }
    return count ? sum / count : NaN;
  });
}

/** Where a finding lies on a time line from one step to another, in per cent: `{left, width, open}`. */
export function place({ since_step: since, until_step: until }, first, last) {
  const share = (step) => 100 * Math.min(1, Math.max(0, last > first ? (step - first) / (last - first) : 0));
  const end = until === null ? 100 : share(until);
  return { left: share(since), width: Math.max(0, end - share(since)), open: until === null };
}

/**
 * How a metric moved from a run's first sample to one of its others: `{from, to, share, layer, layerFrom, layerTo}`, by
 * the means over all cells and over the layer that moved most (`layerShare`).
 *
 * It moves by a share of its range where that is bounded, otherwise of the larger end.
 */
export function movement(spec, series, sample = series.steps.length - 1) {
  const size = series.layers * series.heads;
  const ends = { ...series, steps: [0, 1], values: new Float32Array(2 * size) };
  ends.values.set(series.values.subarray(0, size));
  ends.values.set(series.values.subarray(sample * size, (sample + 1) * size), size);
  const change = (mask) => {
    const [from, to] = meanOver(ends, mask);
    const [low, high] = spec.range;
    const reach = low !== null && high !== null ? high - low : Math.max(Math.abs(from), Math.abs(to));
    return { from, to, share: Math.abs(to - from) / reach };
  };
  const layers = Array.from({ length: series.layers }, (_, layer) => ({ layer, ...change(cellsOf({ layers: [layer], heads: [] }, series.layers, series.heads)) }));
  const most = layers.filter(({ share }) => share > 0).sort((a, b) => b.share - a.share)[0];
  return { ...change(new Uint8Array(size).fill(1)), layer: most?.layer ?? null, layerFrom: most?.from, layerTo: most?.to, layerShare: most?.share ?? 0 };
}

/** What moved most from a run's first sample to its last, most first; `metrics` is [{spec, series}]. */
export function movedMost(metrics, count) {
  const moved = metrics.map(({ spec, series }) => ({ metric: spec.name, ...movement(spec, series) }));
  return moved.filter(({ share }) => share > 0.01).sort((a, b) => b.share - a.share).slice(0, count);
}

/** The most severe open finding of each metric of a stack, by metric; `findings` has the more severe first. */
export function byMetric(findings, stack) {
  const open = findings.filter((finding) => finding.until_step === null && finding.stack === stack && finding.metric);
  return new Map(open.reverse().map((finding) => [finding.metric, finding]));
}

/** Names of metrics in the order in which to look at them: by severity of what was found, then by what moved most. */
export function unusualFirst(items) {
  const rank = ({ finding }) => (finding ? ORDER.indexOf(finding.severity) : -1);
  return [...items].sort((a, b) => rank(b) - rank(a) || b.share - a.share).map(({ name }) => name);
}

/** One sentence of what moved. */
export function movedText({ metric, from, to, layer, layerFrom, layerTo }) {
  const most = layer === null ? "" : `, most in layer ${layer} (${number(layerFrom)} to ${number(layerTo)})`;
  return `${metric} ${to > from ? "rose" : "fell"} from ${number(from)} to ${number(to)}${most}.`;
}
