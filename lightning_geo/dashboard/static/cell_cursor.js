// A cursor in a map: arrow keys move it from cell to cell, and what it is on is spoken.

import { el } from "./dom.js";

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity] };

/** The cell after a key, within the map; the first for a cursor that was nowhere. */
export function moved(cell, key, rows, cols) {
  const [down, right] = MOVES[key];
  if (!cell) return { row: 0, col: 0 };
  const within = (value, count) => Math.max(0, Math.min(count - 1, value));
  return { row: within(cell.row + down, rows), col: within((cell.col ?? 0) + right, cols) };
}

/** What a screen reader says, apart from what is on screen: that changes with the mouse and while it plays. */
export class Voice {
  constructor() {
    this.element = el("div", { class: "spoken", "aria-live": "polite" });
  }

  say(text) {
    this.element.textContent = text;
  }
}

export class CellCursor {
  /**
   * `label` names the map; `onmove(cell)` is called with each cell, null where the focus goes, and returns what to
   * say of it; `onpick(cell)` on Enter.
   */
  constructor(heatmap, { label, voice, onmove, onpick }) {
    this.heatmap = heatmap;
    this.ring = el("div", { class: "cell-cursor", hidden: true });
    this.say = (cell) => {
      const text = onmove(cell);
      if (cell) voice.say(text);
    };
    this.cell = null;
    const { element } = heatmap;
    for (const [name, value] of Object.entries({ tabindex: 0, role: "application", "aria-roledescription": "map", "aria-label": `${label}. Arrow keys move from cell to cell, Enter picks one.` })) element.setAttribute(name, value);
    element.append(this.ring);
    element.addEventListener("keydown", (event) => this._key(event, onpick));
    element.addEventListener("blur", () => {
      if (this.ring.hidden) return;
      this.ring.hidden = true;
      this.say(null);
    });
    element.addEventListener("pointerdown", () => (this.ring.hidden = true));
  }

  _key(event, onpick) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const { box } = this.heatmap;
    if (!box || !box.rows || !box.cols) return;
    if (event.key === "Enter" && !this.ring.hidden) onpick(this.cell);
    else if (event.key in MOVES) {
      this.cell = moved(this.ring.hidden && !this._within(box) ? null : this.cell, event.key, box.rows, box.cols);
      this.ring.hidden = false;
      this.place();
      this.say(this.cell);
    } else return;
    event.preventDefault();
    event.stopPropagation(); // from the slider
  }

  _within({ rows, cols }) {
    return this.cell !== null && this.cell.row < rows && this.cell.col < cols;
  }

  /** Puts the ring on its cell; called after each painting too, since cells change their size. */
  place() {
    const { box } = this.heatmap;
    if (this.ring.hidden || !box) return;
    if (!this._within(box)) {
      this.ring.hidden = true;
      return;
    }
    const { row, col } = this.cell;
    Object.assign(this.ring.style, {
      left: `${box.left + col * box.wide}px`, top: `${box.top + row * box.tall}px`, width: `${Math.max(box.wide, 4)}px`, height: `${Math.max(box.tall, 4)}px`,
    });
  }
}
