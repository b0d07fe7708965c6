// Which colours values have: from the whole run, from one step, or as a metric's definition bounds them.

import { scale } from "./colour.js";
import { difference, frame } from "./series.js";
import { joined, spreadOf } from "./spread.js";

/** Spreads of values, kept as long as the values are; those of series also as changes since their first sample. */
export class Scales {
  constructor() {
    this.spreads = new WeakMap();
    this.changed = new WeakMap();
  }

  /** Of values; `from` as in `spreadOf`, the same whenever they are asked for. */
  spread(values, from = null) {
    if (!this.spreads.has(values)) this.spreads.set(values, spreadOf(values, from));
    return this.spreads.get(values);
  }

  /** Of what a series has become since its first sample. */
  changes(series) {
    if (!this.changed.has(series)) {
      const first = frame(series, 0);
      const values = new Float32Array(series.values.length);
      series.steps.forEach((_, i) => values.set(difference(frame(series, i), first), i * first.length));
      this.changed.set(series, spreadOf(values));
    }
    return this.changed.get(series);
  }

  /** The colours of a metric in series, of which the frames `shown` are on screen. */
  ofSeries({ range, change }, spec, series, shown) {
    if (range === "step") return this.ofValues({ range, change }, spec, shown);
    return made({ range, change }, spec, series.map((s) => (change ? this.changes(s) : this.spread(s.values, spec.log_from))));
  }

  /** The colours of values of a metric, of which these are all. */
  ofValues({ range, change }, spec, values) {
    return made({ range, change }, spec, values.map((v) => this.spread(v, change ? null : spec.log_from)));
  }
}

function made({ range, change }, spec, spreads) {
  const [low, high] = spec.range;
  if (!change && range === "fixed" && low !== null && high !== null) return scale(low, high, spec.signed);
  return colours(joined(spreads), change || spec.signed, change ? null : spec.log_from, range === "full");
}

/** The colours of a spread, or of all its values where `full`. */
export function colours(spread, signed, from = null, full = false) {
  if (!spread) return scale(0, 1, signed);
  const { low, high, lowest, least, most } = spread;
  return scale(full ? lowest : low, full ? most : high, signed, from, [least, most]);
}
