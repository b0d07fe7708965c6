// The colours that TensorBoard gives to runs in its list and in Time Series. No DOM: these run under `node --test`.
//
// A plugin can ask TensorBoard for its runs, not for their colours. So they are worked out by TensorBoard's own rule
// (2.21): runs in the order in which it lists them, each with the next of seven colours; a run keeps its own while
// others come. What a user changed by hand, a run's colour or its check mark, TensorBoard tells nobody; the filter of
// its list and "group by regex" are in its address, and are followed. Its older tabs (Scalars, Images, Histograms) take
// other colours than its list does.

import { rgb, visible } from "./contrast.js";
import { css } from "./colour.js";

// on light and dark ground
const PALETTE = [["#425066", "#8e98a3"], ["#12b5cb", "#12b5cb"], ["#e52592", "#e52592"], ["#f9ab00", "#f9ab00"], ["#9334e6", "#9334e6"], ["#7cb342", "#7cb342"], ["#e8710a", "#e8710a"]];
const NONE = ["#e0e0e0", "#3b3b3b"]; // of runs that "group by regex" leaves out

/** The group of a run by a regular expression: what it captures, or whether it matches; null if not. */
function groupOf(run, pattern) {
  try {
    const found = run.match(new RegExp(pattern));
    return found && (found.length > 1 ? JSON.stringify(found.slice(1)) : "matching");
  } catch {
    return null; // TensorBoard takes a damaged one as matching nothing
  }
}

export class RunColours {
  constructor() {
    this.places = new Map(); // of runs or groups
    this.names = null; // TensorBoard's runs, null until it has answered
    this.pattern = null;
  }

  /** Takes TensorBoard's runs in its order. */
  update(names) {
    this.names = names;
    this._place();
  }

  /** Takes the pattern of "group by regex", or null. */
  groupBy(pattern) {
    if (pattern === this.pattern) return;
    this.pattern = pattern;
    this.places = new Map();
    if (this.names) this._place();
  }

  _place() {
    for (const name of this.names) {
      const key = this._key(name);
      if (key !== null && !this.places.has(key)) this.places.set(key, this.places.size);
    }
  }

  _key(run) {
    return this.pattern === null ? run : groupOf(run, this.pattern);
  }

  /**
   * The colours of a run: TensorBoard's own (`swatch`), and one for lines that is seen on the ground; `dashed` tells
   * apart runs whose colour is the same. `listed` are the runs of the page, for where there is no TensorBoard around it.
   */
  of(run, dark, listed = []) {
    const key = this._key(run);
    const place = this.names ? this.places.get(key) ?? -1 : listed.indexOf(run);
    const pair = place < 0 ? NONE : PALETTE[place % PALETTE.length];
    const swatch = pair[dark ? 1 : 0];
    return { swatch, line: css(visible(rgb(swatch), dark)), dashed: place >= PALETTE.length && Math.floor(place / PALETTE.length) % 2 === 1 };
  }
}

const MOST = 12; // runs with a picture or a line unless chosen otherwise

/** The runs that are shown: those chosen, or the first that the filter of TensorBoard's list leaves. */
export function shownRuns(chosen, runs, filter = "") {
  if (chosen) return runs.filter((run) => chosen.includes(run));
  let found = runs;
  try {
    const pattern = new RegExp(filter, "i");
    found = runs.filter((run) => pattern.test(run));
  } catch {
    // as TensorBoard does: nothing matches, and then everything is better than nothing
  }
  return (found.length ? found : runs).slice(0, MOST);
}
