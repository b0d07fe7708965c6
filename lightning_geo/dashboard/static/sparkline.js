// A metric over a run, small: the mean over a finding's cells, what is usual while it lasts, and when it began.

import { number } from "./format.js";
import { Paper, theme } from "./paper.js";
import { extent } from "./series.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [2, 54, 8, 18];

export class Sparkline {
  constructor(label) {
    this.paper = new Paper(label);
    this.element = this.paper.element;
  }

  /** Draws values over steps; `usual` is a band, `since` and `until` (or null) are marked. */
  draw({ xs, ys, usual, since, until }) {
    const context = this.paper.begin();
    const { ink, faint, line, mark } = theme();
    const band = usual.filter((end) => end !== null && Number.isFinite(end));
    const [low, high] = extent([...ys, ...band]) ?? [0, 1];
    const box = { left: LEFT, top: TOP, right: this.paper.width - RIGHT, bottom: this.paper.height - BOTTOM };
    const last = xs.length - 1;
    const x = (step) => box.left + ((step - xs[0]) / (xs[last] - xs[0] || 1)) * (box.right - box.left);
    const y = (value) => box.bottom - ((value - low) / (high - low || 1)) * (box.bottom - box.top);
    if (band.length) {
      const [bottom, top] = [usual[0] === null ? box.bottom : y(usual[0]), usual[1] === null ? box.top : y(usual[1])];
      const [left, right] = [x(Math.max(since, xs[0])), x(Math.min(until ?? xs[last], xs[last]))];
      context.fillStyle = line;
      context.fillRect(left, Math.min(top, bottom), right - left, Math.abs(bottom - top));
      context.fillStyle = faint;
      for (const edge of [bottom, top]) context.fillRect(left, edge - 0.5, right - left, 1);
    }
    context.strokeStyle = mark;
    context.setLineDash([3, 2]);
    for (const step of [since, until]) {
      if (step === null || step < xs[0] || step > xs[last]) continue;
      context.beginPath();
      context.moveTo(x(step), box.top - 6);
      context.lineTo(x(step), box.bottom + 3);
      context.stroke();
    }
    context.setLineDash([]);
    this._line(context, xs, ys, x, y, ink);
    context.fillStyle = faint;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const end = ys[ys.length - 1];
    if (Number.isFinite(end)) context.fillText(number(end), box.right + 6, y(end));
    context.fillText(String(xs[0]), box.left, box.bottom + 11);
    context.textAlign = "right";
    context.fillText(String(xs[last]), box.right, box.bottom + 11);
  }

  _line(context, xs, ys, x, y, ink) {
    context.strokeStyle = context.fillStyle = ink;
    context.lineWidth = 1.75;
    context.lineJoin = "round";
    context.beginPath();
    let down = false;
    for (let i = 0; i < ys.length; i++) {
      if (!Number.isFinite(ys[i])) {
        down = false;
        continue;
      }
      if (down) context.lineTo(x(xs[i]), y(ys[i]));
      else context.moveTo(x(xs[i]), y(ys[i]));
      if (!down && !Number.isFinite(ys[i + 1])) context.fillRect(x(xs[i]) - 1.5, y(ys[i]) - 1.5, 3, 3);
      down = true;
    }
    context.stroke();
    context.lineWidth = 1;
  }
}
