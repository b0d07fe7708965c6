// Lines over steps.

import { number, ticks } from "./format.js";
import { closest, placed } from "./line_ends.js";
import { Paper, fitted, theme } from "./paper.js";
import { extent } from "./series.js";
import { Stencil } from "./stencil.js";

const LEFT = 52;
const TOP = 10;
const BOTTOM = 36;
const RIGHT = 12;
const NAME = 13; // pixels from the name of one line to the next
const DIMMED = 0.25; // of the lines that are not pointed at

export class Chart {
  constructor(label) {
    this.paper = new Paper(label);
    this.element = this.paper.element;
    this.stencil = new Stencil(this.paper);
  }

  /**
   * Draws lines `{xs, ys, colour, dashed, wide, end}`, each with its name `end` where it ends, on a band from `low` to
   * `high` if it has them; `cursor` is an x to mark;
   * `across` names the x axis. `over`, of `near`, is the line that is pointed at, `text` what is said of it.
   *
   * The same `lines` at another cursor are not drawn again: thousands of samples cost as little as a few.
   */
  draw({ lines, cursor = null, across = "step", unit = "", over = null, text = "" }) {
    const context = this.paper.begin();
    const size = [this.paper.width, this.paper.height].join();
    if (this.geometry?.lines !== lines || this.geometry.size !== size) this._scales(context, lines, size);
    this._axes(context, across, unit);
    this.stencil.put([lines], (picture) => this._strokes(picture), over ? DIMMED : 1);
    if (over && Number.isFinite(lines[over.index]?.ys[over.sample])) this._highlight(context, lines[over.index], over.sample, text);
    if (cursor === null) return;
    const { box, x } = this.geometry;
    context.strokeStyle = theme().mark;
    context.beginPath();
    context.moveTo(x(cursor), box.top);
    context.lineTo(x(cursor), box.bottom);
    context.stroke();
  }

  _strokes(context) {
    const { lines, box, x, y, named } = this.geometry;
    for (const line of lines) if (line.low) band(context, line, x, y);
    for (const line of lines) stroke(context, line, x, y);
    context.setLineDash([]);
    context.lineWidth = 1;
    if (named) names(context, lines, box, x, y);
  }

  /** The line that is pointed at, with a dot where, and what is said of it. */
  _highlight(context, line, sample, text) {
    const { box, x, y } = this.geometry;
    const { ink, ground } = theme();
    stroke(context, { ...line, wide: true }, x, y);
    context.setLineDash([]);
    const [px, py] = [x(line.xs[sample]), y(line.ys[sample])];
    context.beginPath();
    context.arc(px, py, 4, 0, 2 * Math.PI);
    context.fill();
    const right = px > (box.left + box.right) / 2;
    context.textAlign = right ? "right" : "left";
    context.textBaseline = "middle";
    const [tx, ty] = [px + (right ? -10 : 10), py < box.top + 20 ? py + 16 : py - 14];
    context.lineWidth = 4;
    context.strokeStyle = ground;
    context.strokeText(text, tx, ty);
    context.fillStyle = ink;
    context.fillText(text, tx, ty);
    context.lineWidth = 1;
  }

  _scales(context, lines, size) {
    const xs = extentOf(lines, "xs") ?? [0, 1];
    let [low, high] = extentOf(lines, "ys", "low", "high") ?? [0, 1];
    const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.5;
    [low, high] = [low - room, high + room];
    const named = Math.max(0, ...lines.map(({ end }) => (end ? context.measureText(end).width + 6 : 0)));
    const box = { left: LEFT, top: TOP, right: this.paper.width - RIGHT - named, bottom: this.paper.height - BOTTOM };
    const x = (value) => box.left + ((value - xs[0]) / (xs[1] - xs[0] || 1)) * (box.right - box.left);
    const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
    const value = (py) => low + ((box.bottom - py) / (box.bottom - box.top)) * (high - low);
    this.geometry = { size, box, lines, x, xs, y, ys: [low, high], value, named };
  }

  _axes(context, across, unit) {
    const { ink, faint, line: rule } = theme();
    const { box, x, xs, y, ys } = this.geometry;
    context.textBaseline = "middle";
    context.strokeStyle = rule;
    context.fillStyle = ink;
    context.textAlign = "right";
    context.beginPath();
    for (const tick of ticks(...ys, (box.bottom - box.top) / 40)) {
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
  }

  /** The line nearest to a mouse event: `{index, sample}`, or null. */
  near(event) {
    const across = this.at(event);
    if (across === null) return null;
    const { lines, value } = this.geometry;
    return closest(lines, across, value(event.clientY - this.paper.canvas.getBoundingClientRect().top));
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

/** What lies between the lowest and the highest, where both are known. */
function band(context, { xs, low, high, colour }, x, y) {
  context.fillStyle = colour;
  context.globalAlpha = 0.18;
  for (let start = 0; start < xs.length; start++) {
    let end = start;
    while (end < xs.length && Number.isFinite(low[end] + high[end])) end++;
    context.beginPath();
    for (let i = start; i < end; i++) context.lineTo(x(xs[i]), y(low[i]));
    for (let i = end - 1; i >= start; i--) context.lineTo(x(xs[i]), y(high[i]));
    context.fill();
    start = end;
  }
  context.globalAlpha = 1;
}

/** Names of lines where they end. */
function names(context, lines, box, x, y) {
  const ends = lines.map(({ xs, ys, end }) => {
    const last = end ? ys.findLastIndex(Number.isFinite) : -1;
    return { y: last < 0 ? NaN : y(ys[last]), x: last < 0 ? NaN : x(xs[last]) };
  });
  context.textAlign = "left";
  for (const { index, y: place } of placed(ends, box.top, box.bottom, NAME)) {
    context.fillStyle = context.strokeStyle = lines[index].colour;
    context.globalAlpha = 0.5;
    context.beginPath();
    context.moveTo(ends[index].x + 1, ends[index].y);
    context.lineTo(box.right + 5, place);
    context.stroke();
    context.globalAlpha = 1;
    context.fillText(lines[index].end, box.right + 7, place);
  }
}

function extentOf(lines, ...axes) {
  const ends = lines.flatMap((line) => axes.map((axis) => extent(line[axis] ?? []))).filter(Boolean);
  return ends.length ? [Math.min(...ends.map((e) => e[0])), Math.max(...ends.map((e) => e[1]))] : null;
}
