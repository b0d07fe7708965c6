// Lines over steps.

import { number, ticks } from "./format.js";
import { Paper, fitted, theme } from "./paper.js";
import { extent } from "./series.js";

const LEFT = 52;
const TOP = 10;
const BOTTOM = 36;
const RIGHT = 12;

export class Chart {
  constructor(label) {
    this.paper = new Paper(label);
    this.element = this.paper.element;
  }

  /**
   * Draws lines `{xs, ys, colour, dashed, wide}`; `cursor` is an x to mark; `across` names the x axis.
   *
   * The same `lines` at another cursor are not drawn again: thousands of samples cost as little as a few.
   */
  draw({ lines, cursor = null, across = "step", unit = "" }) {
    const context = this.paper.begin();
    const key = [this.paper.canvas.width, this.paper.canvas.height, across, unit, theme().ink].join();
    if (this.drawn?.lines !== lines || this.drawn.key !== key) {
      this._lines(context, lines, across, unit);
      if (this.paper.canvas.width && this.paper.canvas.height) this._keep(lines, key);
    } else {
      context.drawImage(this.drawn.picture, 0, 0, this.paper.width, this.paper.height);
    }
    if (cursor === null) return;
    const { box, x } = this.geometry;
    context.strokeStyle = theme().mark;
    context.beginPath();
    context.moveTo(x(cursor), box.top);
    context.lineTo(x(cursor), box.bottom);
    context.stroke();
  }

  _keep(lines, key) {
    const picture = this.drawn?.picture ?? document.createElement("canvas");
    picture.width = this.paper.canvas.width;
    picture.height = this.paper.canvas.height;
    picture.getContext("2d").drawImage(this.paper.canvas, 0, 0);
    this.drawn = { lines, key, picture };
  }

  _lines(context, lines, across, unit) {
    const { ink, faint, line: rule } = theme();
    const xs = extentOf(lines, "xs") ?? [0, 1];
    let [low, high] = extentOf(lines, "ys") ?? [0, 1];
    const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.5;
    [low, high] = [low - room, high + room];
    const box = { left: LEFT, top: TOP, right: this.paper.width - RIGHT, bottom: this.paper.height - BOTTOM };
    const x = (value) => box.left + ((value - xs[0]) / (xs[1] - xs[0] || 1)) * (box.right - box.left);
    const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
    this.geometry = { box, lines, x, xs };
    context.textBaseline = "middle";
    context.strokeStyle = rule;
    context.fillStyle = ink;
    context.textAlign = "right";
    context.beginPath();
    for (const tick of ticks(low, high, (box.bottom - box.top) / 40)) {
      context.moveTo(box.left, Math.round(y(tick)) + 0.5);
      context.lineTo(box.right, Math.round(y(tick)) + 0.5);
      context.fillText(number(tick), box.left - 6, y(tick));
    }
    context.stroke();
    context.textAlign = "center";
    for (const tick of ticks(xs[0], xs[1], (box.right - box.left) / 80)) context.fillText(number(tick), x(tick), box.bottom + 11);
    context.fillStyle = faint;
    context.fillText(across, (box.left + box.right) / 2, box.bottom + 27);
    if (unit && unit !== "1") {
      context.textAlign = "left";
      context.fillText(fitted(context, unit, box.right - box.left), box.left + 4, box.top + 4);
    }
    context.lineJoin = "round";
    for (const line of lines) stroke(context, line, x, y);
    context.setLineDash([]);
    context.lineWidth = 1;
  }

  /** The x value under a mouse event, or null. */
  at(event) {
    if (!this.geometry) return null;
    const { box, xs } = this.geometry;
    const px = event.clientX - this.paper.canvas.getBoundingClientRect().left;
    if (px < box.left - 8 || px > box.right + 8) return null;
    const share = Math.min(1, Math.max(0, (px - box.left) / (box.right - box.left)));
    return xs[0] + share * (xs[1] - xs[0]);
  }
}

function stroke(context, { xs, ys, colour, dashed, wide }, x, y) {
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = wide ? 2.25 : 1.5;
  context.setLineDash(dashed ? [6, 4] : []);
  context.beginPath();
  let down = false;
  for (let i = 0; i < ys.length; i++) {
    const given = Number.isFinite(ys[i]);
    if (!given) down = false;
    else if (down) context.lineTo(x(xs[i]), y(ys[i]));
    else {
      context.moveTo(x(xs[i]), y(ys[i]));
      // a sample between absent ones has no line
      if (!Number.isFinite(ys[i + 1])) context.fillRect(x(xs[i]) - 2, y(ys[i]) - 2, 4, 4);
      down = true;
    }
  }
  context.stroke();
}

function extentOf(lines, axis) {
  const ends = lines.map((line) => extent(line[axis])).filter(Boolean);
  return ends.length ? [Math.min(...ends.map((e) => e[0])), Math.max(...ends.map((e) => e[1]))] : null;
}
