// The picture of the run strip: curves on scales of their own over one axis of steps.

import { ROLES, ruled } from "./curves.js";
import { Paper, theme } from "./paper.js";
import { extent } from "./series.js";
import { Stencil } from "./stencil.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [8, 12, 14, 8];
const DOTTED = 60; // points of a score up to which each has a dot

export class StripChart {
  constructor() {
    this.paper = new Paper("curves of the run");
    this.element = this.paper.element;
    this.stencil = new Stencil(this.paper);
    this.range = [0, 1];
  }

  name(text) {
    if (this.paper.canvas.getAttribute("aria-label") !== text) this.paper.canvas.setAttribute("aria-label", text);
  }

  /**
   * Draws a run's curves, and run B's dashed: `other` is `{curves, onto, key}`: `onto(step)` is the place of
   * its steps on A's, `key` tells one such map from another.
   *
   * `steps` are those of the geometry's samples, `cursor` one of them or null, `over` what is said at the pointer.
   */
  draw({ run, other, steps, cursor, over }) {
    const context = this.paper.begin();
    const { mark, ink } = theme();
    const { curves } = run;
    this.box = { left: LEFT, top: TOP, right: this.paper.width - RIGHT, bottom: this.paper.height - BOTTOM };
    const ends = [steps, ...Object.values(curves).map((curve) => curve.steps)].filter((s) => s.length).flatMap((s) => [s[0], s[s.length - 1]]);
    this.range = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
    this.stencil.put([run, other?.curves, other?.key, ...this.range], (picture) => {
      this._ticks(picture, run);
      for (const role of ["rate", "loss", "score"]) this._curve(picture, role, curves[role], other);
    });
    if (cursor !== null) vertical(context, this.x(cursor), this.box, mark, 1.5, []);
    if (!over) return;
    vertical(context, this.x(over.step), this.box, ink, 1, [2, 2]);
    const right = this.x(over.step) > this.paper.width / 2;
    context.textAlign = right ? "right" : "left";
    context.textBaseline = "middle";
    this._label(context, over.text, this.x(over.step) + (right ? -6 : 6));
  }

  _label(context, text, x) {
    const { ink, ground } = theme();
    context.lineWidth = 4;
    context.strokeStyle = ground;
    context.strokeText(text, x, 6);
    context.fillStyle = ink;
    context.fillText(text, x, 6);
    context.lineWidth = 1;
  }

  _ticks(context, { epochs, evaluations }) {
    const { line, faint } = theme();
    for (const step of ruled(epochs.slice(1).map(([first]) => first), (s) => this.x(s))) vertical(context, this.x(step), this.box, line, 1, []);
    context.fillStyle = faint;
    for (const step of ruled(evaluations, (s) => this.x(s))) {
      const x = this.x(step);
      context.beginPath();
      context.moveTo(x, this.box.bottom + 1);
      context.lineTo(x - 3.5, this.box.bottom + 7);
      context.lineTo(x + 3.5, this.box.bottom + 7);
      context.fill();
    }
    context.strokeStyle = line;
    context.beginPath();
    context.moveTo(this.box.left, this.box.bottom + 0.5);
    context.lineTo(this.box.right, this.box.bottom + 0.5);
    context.stroke();
  }

  /** Both runs' on one scale, if they are of the same tag. */
  _curve(context, role, curve, other) {
    if (!curve) return;
    const found = role === "rate" ? null : other?.curves[role];
    const second = found?.tag === curve.tag ? found : null;
    const [low, high] = extent([...curve.values, ...(second?.values ?? [])]) ?? [0, 0];
    const y = (value) => this.box.bottom - 3 - (high > low ? (value - low) / (high - low) : 0.5) * (this.box.bottom - this.box.top - 6);
    const colour = theme()[role];
    if (second) stroke(context, second, (step) => this.x(other.onto(step)), y, { colour, dashes: [6, 4], dots: false, ...this.box });
    stroke(context, curve, (step) => this.x(step), y, { colour, dashes: ROLES[role].dashes, dots: role === "score" && curve.steps.length <= DOTTED, ...this.box });
  }

  x(step) {
    const [first, last] = this.range;
    const { left, right } = this.box;
    return left + (last > first ? (step - first) / (last - first) : 0.5) * (right - left);
  }

  perPixel() {
    return (this.range[1] - this.range[0]) / Math.max(1, this.box.right - this.box.left);
  }

  /** The step under a mouse event, or null. */
  at(event) {
    if (!this.box) return null;
    const px = event.clientX - this.paper.canvas.getBoundingClientRect().left;
    const { left, right } = this.box;
    if (px < left - 8 || px > right + 8) return null;
    return this.range[0] + Math.min(1, Math.max(0, (px - left) / (right - left))) * (this.range[1] - this.range[0]);
  }
}

function vertical(context, x, { top, bottom }, colour, width, dashes) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.setLineDash(dashes);
  context.beginPath();
  context.moveTo(x, top - 2);
  context.lineTo(x, bottom);
  context.stroke();
  context.setLineDash([]);
  context.lineWidth = 1;
}

/** A line through finite values; a dot for one between others, a cross at the top for what is not finite. */
function stroke(context, { steps, values }, x, y, { colour, dashes, dots, top, left, right }) {
  context.save();
  context.beginPath();
  context.rect(left - 4, 0, right - left + 8, context.canvas.height);
  context.clip(); // run B may go on for longer
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = 1.75;
  context.lineJoin = "round";
  context.setLineDash(dashes);
  context.beginPath();
  const crosses = [];
  values.forEach((value, i) => {
    const [before, after] = [Number.isFinite(values[i - 1]), Number.isFinite(values[i + 1])];
    const [px, py] = [x(steps[i]), y(value)];
    if (!Number.isFinite(value)) crosses.push(px);
    else if (before) context.lineTo(px, py);
    else context.moveTo(px, py);
    if (Number.isFinite(value) && (dots || !(before || after))) context.fillRect(px - 2.5, py - 2.5, 5, 5);
  });
  context.stroke();
  context.setLineDash([]);
  context.beginPath();
  for (const px of crosses) {
    context.moveTo(px - 3, top);
    context.lineTo(px + 3, top + 6);
    context.moveTo(px + 3, top);
    context.lineTo(px - 3, top + 6);
  }
  context.stroke();
  context.restore();
}
