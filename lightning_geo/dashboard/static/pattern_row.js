// A head's attention patterns side by side, and what the cell says that one points at.

import { CellCursor } from "./cell_cursor.js";
import { scale } from "./colour.js";
import { el } from "./dom.js";
import { number } from "./format.js";
import { Heatmap } from "./heatmap.js";
import { shownAt, told } from "./patterns.js";
import { extent } from "./series.js";

const WHICH = ["first", "chosen", "last"];

export class PatternRow {
  constructor(voice) {
    this.figures = WHICH.map((which) => this._figure(which, voice));
    this.reading = el("div", { class: "reading" });
    this.element = el("div", { class: "head-patterns" }, el("div", { class: "row" }, ...this.figures.map(({ element }) => element)), this.reading);
    this.over = null; // {at, row, col}
  }

  _figure(which, voice) {
    const heatmap = new Heatmap(`attention pattern at the ${which} sample`);
    const caption = el("figcaption", {});
    const at = WHICH.indexOf(which);
    const cursor = new CellCursor(heatmap, {
      label: `attention from queries, down, to keys, at the ${which} sample`, voice, onpick: () => {},
      onmove: (cell) => {
        this._point(at, cell);
        return this.reading.textContent;
      },
    });
    heatmap.element.addEventListener("mousemove", (event) => {
      const cell = heatmap.hit(event);
      this._point(at, cell?.col === null ? null : cell);
    });
    heatmap.element.addEventListener("mouseleave", () => this._point(at, null));
    return { heatmap, caption, cursor, element: el("figure", {}, heatmap.element, caption) };
  }

  /** Draws a head's patterns at a step; of all samples the colours are the same. */
  paint(got, step) {
    this.shown = shownAt(got, step);
    const ends = got.samples.map(({ roots }) => extent(roots)?.[1] ?? 0);
    const top = Math.max(...ends, 0.01);
    const colours = scale(0, top);
    this.figures.forEach(({ heatmap, caption, cursor, element }, at) => {
      element.hidden = at >= this.shown.length;
      if (element.hidden) return;
      const [sample, which] = this.shown[at];
      caption.replaceChildren(el("b", {}, `step ${sample.step}`), el("span", { class: "muted" }, which));
      const { side, roots } = sample;
      heatmap.draw({ values: roots, rows: side, cols: side, scale: colours, small: true, marks: this._marks(at, sample) });
      cursor.place();
    });
    this.top = top ** 2;
    this._read();
  }

  /** The cell that is pointed at is framed in all three. */
  _marks(at, { side }) {
    if (!this.over || this.over.row >= side || this.over.col >= side) return [];
    return [{ row: this.over.row, col: this.over.col, colour: "#ffffff" }];
  }

  _point(at, cell) {
    if (cell?.row === this.over?.row && cell?.col === this.over?.col && (!cell || at === this.over.at)) return;
    this.over = cell && { at, row: cell.row, col: cell.col };
    this.onpoint?.();
    this._read();
  }

  _read() {
    const [sample] = this.shown?.[this.over?.at] ?? [];
    if (sample && this.over.row < sample.side && this.over.col < sample.side) {
      const [query, key, attention] = told(this.over, sample);
      this.reading.replaceChildren(`Step ${sample.step}: ${query} → ${key}: `, el("b", {}, number(attention)));
      return;
    }
    const [{ length, side, words } = {}] = this.shown?.[0] ?? [];
    const cells = length > side ? `, ${side} × ${side} cells of up to ${Math.ceil(length / side)}` : "";
    this.reading.replaceChildren(el("span", { class: "muted" }, `Queries down, keys to the right: ${length} tokens of one probe sequence${words ? "" : " (numbered: the record has no words)"}${cells}. Dark 0, bright ${number(this.top)}. Hover for a pair of tokens.`));
  }

  canvases() {
    return this.figures.map(({ heatmap }) => heatmap.paper.canvas);
  }
}
