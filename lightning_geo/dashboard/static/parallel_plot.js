// Parallel coordinates: a line for each run through its hyperparameters and what came of them. Drag along an axis to
// keep the runs that pass there, in the table too.

import { el, refill } from "./dom.js";
import { titleOf } from "./heading.js";
import { middle } from "./format.js";
import { Paper, fitted, theme } from "./paper.js";
import { brushed, marksOf, moved, nearestLine, passing, placeOn } from "./parallel_axes.js";
import { roving } from "./roving.js";
import { split, tagOf, valueOf } from "./run_rows.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [64, 64, 10, 12];
const GRAB = 22; // pixels beside an axis that belong to it
const CLICK = 4; // pixels up to which a drag is a click, which takes the brush away

export class ParallelPlot {
  /** `onover(runs)` is called with the run that is pointed at. */
  constructor(app, onover) {
    this.app = app;
    this.onover = onover;
    this.paper = new Paper("parallel coordinates of runs");
    this.names = roving(el("div", { class: "axes" }), "across");
    this.note = el("p", { class: "muted" });
    this.box = el("div", { class: "parallel" }, this.names, this.paper.element);
    this.element = el("section", {}, el("h3", {}, "Hyperparameters and outcome"), this.box, this.note);
    const { element } = this.paper;
    element.addEventListener("pointerdown", (event) => this._start(event));
    element.addEventListener("pointermove", (event) => this._move(event));
    element.addEventListener("pointerup", (event) => this._end(event));
    element.addEventListener("pointerleave", () => this._hover(-1));
    this.over = [];
  }

  /** `rows` are all of them, `axes` as of `axesOf`; `why` is said in place of a plot without hyperparameters. */
  paint({ rows, axes, colourOf, why }) {
    this.box.hidden = Boolean(why);
    this.note.textContent = why || "Drag along an axis to keep the runs that pass there; click it to let all pass.";
    if (why) return;
    Object.assign(this, { rows, axes, colourOf });
    this._names();
    this._draw();
  }

  /** Points out runs. */
  mark(runs) {
    if (runs.join() === this.over.join()) return;
    this.over = runs;
    if (this.axes && !this.box.hidden) this._draw();
  }

  _title({ key }) {
    const [kind, name] = split(key);
    if (kind === "loss" || kind === "score") return tagOf(this.rows, kind) || kind;
    const spec = this.app.index.metrics.find((m) => m.name === name);
    return kind === "hp" || !spec ? name : titleOf(spec);
  }

  /** A name over each axis is a button: ↑ and ↓ move the lower end of its brush, with shift the upper one. */
  _names() {
    const { brush } = this.app.state;
    const key = JSON.stringify([this.axes.map((axis) => [axis.key, this._title(axis)]), brush, this.paper.element.clientWidth]);
    if (key === this.key) return;
    this.key = key;
    const room = Math.max(6, Math.floor(this.paper.element.clientWidth / this.axes.length / 7));
    refill(this.names, ...this.axes.map((axis, i) => {
      const held = brush.some(([name]) => name === axis.key);
      const button = el("button", { type: "button", title: `${this._title(axis)}${axis.kind === "log" ? ", logarithmic" : ""}\n↑ ↓ raise and lower the lower end of what passes, with shift the upper end; Enter lets all pass.`, "aria-pressed": String(held), dataset: { key: axis.key }, onclick: () => this._brush(axis, null) }, middle(this._title(axis), room));
      button.addEventListener("keydown", (event) => this._key(event, axis), true);
      button.style.left = `${this._x(i)}px`;
      return button;
    }));
  }

  _key(event, axis) {
    const held = this.app.state.brush.find(([name]) => name === axis.key);
    const ends = moved(held && held.slice(1), event.key, event.shiftKey);
    if (!ends) return;
    event.preventDefault();
    event.stopPropagation();
    this._brush(axis, ends);
    const count = passing(this.rows, this.axes, this.app.state.brush).length;
    this.app.voice.say(`${this._title(axis)}: ${count} of ${this.rows.length} runs`);
  }

  _brush(axis, ends) {
    const all = ends && ends[0] <= 0 && ends[1] >= 1;
    this.app.update({ brush: brushed(this.app.state.brush, axis.key, all ? null : ends) });
  }

  _x(i) {
    const width = this.paper.element.clientWidth - LEFT - RIGHT;
    return LEFT + (this.axes.length > 1 ? (i / (this.axes.length - 1)) * width : width / 2);
  }

  _y(place) {
    return this.paper.height - BOTTOM - place * (this.paper.height - TOP - BOTTOM);
  }

  _draw() {
    const context = this.paper.begin();
    const { ink, line, ground } = theme();
    const kept = new Set(passing(this.rows, this.axes, this.app.state.brush).map(({ run }) => run));
    const over = this.rows.filter(({ run }) => this.over.includes(run));
    for (const row of this.rows.filter(({ run }) => !kept.has(run))) this._stroke(context, row, line, 1);
    for (const row of this.rows.filter(({ run }) => kept.has(run))) this._stroke(context, row, this.colourOf(row.run).line, 1.5, over.length ? 0.3 : 1);
    for (const row of over) this._stroke(context, row, this.colourOf(row.run).line, 3);
    context.textBaseline = "middle";
    this.axes.forEach((axis, i) => {
      const x = Math.round(this._x(i)) + 0.5;
      context.strokeStyle = ink;
      context.strokeRect(x, this._y(1), 0, this._y(0) - this._y(1));
      context.textAlign = i === this.axes.length - 1 ? "left" : "right";
      const side = i === this.axes.length - 1 ? 6 : -6;
      for (const [place, text] of marksOf(axis)) {
        const short = fitted(context, text, LEFT - 8);
        context.lineWidth = 3;
        context.strokeStyle = ground;
        context.strokeText(short, x + side, this._y(place));
        context.lineWidth = 1;
        context.fillStyle = ink;
        context.fillText(short, x + side, this._y(place));
      }
    });
    for (const [key, low, high] of this.drag?.brush ?? this.app.state.brush) this._held(context, key, low, high);
  }

  _held(context, key, low, high) {
    const at = this.axes.findIndex((axis) => axis.key === key);
    if (at < 0) return;
    const { mark } = theme();
    const box = [this._x(at) - 5, this._y(high), 10, Math.max(2, this._y(low) - this._y(high))];
    context.globalAlpha = 0.25;
    context.fillStyle = mark;
    context.fillRect(...box);
    context.globalAlpha = 1;
    context.strokeStyle = mark;
    context.strokeRect(...box);
  }

  /** A run's line; it has a gap where it has no value. */
  _stroke(context, row, colour, width, alpha = 1) {
    context.strokeStyle = context.fillStyle = colour;
    context.globalAlpha = alpha;
    context.lineWidth = width;
    context.setLineDash(this.colourOf(row.run).dashed ? [6, 4] : []);
    context.beginPath();
    let down = false;
    this._heights(row).forEach((y, i) => {
      if (y === null) down = false;
      else if (down) context.lineTo(this._x(i), y);
      else context.moveTo(this._x(i), y);
      down = y !== null;
      if (y !== null) context.fillRect(this._x(i) - 2, y - 2, 4, 4);
    });
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = context.lineWidth = 1;
  }

  _heights(row) {
    return this.axes.map((axis) => {
      const place = placeOn(axis, valueOf(row, axis.key));
      return place === null ? null : this._y(place);
    });
  }

  _at(event) {
    const bounds = this.paper.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - bounds.left, event.clientY - bounds.top];
    const place = Math.min(1, Math.max(0, (this.paper.height - BOTTOM - y) / (this.paper.height - TOP - BOTTOM)));
    return { x, y, place, axis: this.axes.find((_, i) => Math.abs(this._x(i) - x) <= GRAB) };
  }

  _start(event) {
    const { axis, place, y } = this._at(event);
    if (!axis) return;
    this.drag = { axis, place, y, brush: this.app.state.brush };
    this.paper.element.setPointerCapture(event.pointerId);
  }

  _move(event) {
    const { x, y, place, axis } = this._at(event);
    this.paper.element.style.cursor = axis ? "ns-resize" : "default";
    if (!this.drag) return this._hover(nearestLine(this.rows.map((row) => this._heights(row)), this.axes.map((_, i) => this._x(i)), x, y, 14));
    this.drag.brush = brushed(this.app.state.brush, this.drag.axis.key, [this.drag.place, place]);
    this._draw();
  }

  _end(event) {
    if (!this.drag) return;
    const { axis, place, y } = this.drag;
    const end = this._at(event);
    this.drag = null;
    this._brush(axis, Math.abs(end.y - y) <= CLICK ? null : [place, end.place]);
  }

  _hover(index) {
    this.onover(index < 0 ? [] : [this.rows[index].run]);
  }
}
