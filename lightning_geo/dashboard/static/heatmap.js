// A matrix as coloured cells: rows down, columns to the right, a colour bar beside it.

import { colourBar } from "./colour_bar.js";
import { paintBeyond, paintNumbers } from "./cell_marks.js";
import { place } from "./colour.js";
import { labelled } from "./format.js";
import { frame, outline } from "./outline.js";
import { FONT, Paper, fitted, theme } from "./paper.js";

const LEFT = 46;
const TOP = 24;
const BOTTOM = 40;
const BAR = 78; // for the colour bar and its numbers
const GRID = 10; // pixels of a cell from which on lines divide them
const LARGEST = 64; // pixels of a cell at most, across

export class Heatmap {
  constructor(label) {
    this.paper = new Paper(label);
    this.element = this.paper.element;
    this.cells = document.createElement("canvas");
    this.painted = null; // what is on it
  }

  /**
   * Draws values [rows * cols].
   *
   * `exists(row, col)` is false where the model has no such cell: nothing is drawn there, while a cell without a
   * value is hatched. `marks` are cells to frame, each with a colour; `outlined` is 1 for each cell to frame together
   * with its neighbours; `steps` turns the columns into samples,
   * labelled by their step, with a line at the column `cursor`.
   */
  draw({ values, rows, cols, scale, title = "", exists = null, marks = [], outlined = null, steps = null, cursor = -1, down = "layer", right = "head", small = false }) {
    const context = this.paper.begin();
    const { ink: dark, faint, ground } = theme();
    const left = small ? 6 : LEFT;
    const bottom = small ? 6 : BOTTOM;
    const bar = small ? 0 : BAR;
    const top = small ? 2 : TOP;
    const most = steps ? Infinity : LARGEST;
    const wide = Math.min((this.paper.width - left - bar - 4) / cols, cols === 1 ? 2 * most : most);
    const tall = Math.min((this.paper.height - top - bottom) / rows, most);
    const box = { left, top, wide, tall, rows, cols, right: left + wide * cols, bottom: top + tall * rows };
    this.box = box;
    context.fillStyle = dark;
    context.textBaseline = "middle";
    context.textAlign = "left";
    context.font = `600 ${FONT}`;
    if (title) context.fillText(fitted(context, title, this.paper.width - left), left, 10);
    context.font = FONT;
    this._paintCells(context, box, values, scale);
    if (this.painted.absent) paintAbsent(context, box, values, exists, ground, faint);
    if (Math.min(wide, tall) >= GRID) lines(context, box, ground);
    if (!small) paintBeyond(context, box, values, scale);
    if (!small && !steps && wide >= 42 && tall >= 17) paintNumbers(context, box, values, scale);
    if (cursor >= 0) {
      context.strokeStyle = theme().mark;
      context.lineWidth = 1.5;
      context.strokeRect(left + cursor * wide - 0.75, top - 3, Math.max(wide, 2) + 1.5, box.bottom - top + 6);
    }
    if (outlined) outline(context, box, outlined);
    for (const { row, col, colour } of marks) frame(context, box, row, col, colour);
    if (!small) {
      this._axes(context, box, steps, down, right, dark, faint);
      colourBar(context, box, scale, dark);
    }
  }

  /** Cell by cell into a small picture that is enlarged as a whole: as quick for 80 × 64 as for 6 × 12. */
  _paintCells(context, box, values, scale) {
    const { rows, cols } = box;
    const { low, high, from, first, last, colours } = scale;
    const same = { low, high, from, first, last, colours, values, cols };
    if (!this.painted || Object.keys(same).some((name) => same[name] !== this.painted[name])) {
      this.painted = { ...same, absent: this._fillCells(rows, cols, values, scale) };
    }
    context.imageSmoothingEnabled = box.wide < 1;
    context.drawImage(this.cells, box.left, box.top, box.right - box.left, box.bottom - box.top);
  }

  /** Returns whether a cell has no value. */
  _fillCells(rows, cols, values, scale) {
    this.cells.width = cols;
    this.cells.height = rows;
    const small = this.cells.getContext("2d");
    const picture = small.createImageData(cols, rows);
    let absent = false;
    for (let i = 0; i < rows * cols; i++) {
      const value = values[i];
      if (!Number.isFinite(value)) {
        absent = true;
        continue;
      }
      const colour = scale.colours[place(scale, value)];
      picture.data[4 * i] = colour[0];
      picture.data[4 * i + 1] = colour[1];
      picture.data[4 * i + 2] = colour[2];
      picture.data[4 * i + 3] = 255;
    }
    small.putImageData(picture, 0, 0);
    return absent;
  }

  _axes(context, box, steps, down, right, dark, faint) {
    context.fillStyle = dark;
    context.textAlign = "right";
    for (const row of labelled(box.rows, box.tall, 13)) {
      context.fillText(String(row), box.left - 6, box.top + (row + 0.5) * box.tall);
    }
    context.textAlign = "center";
    if (steps) stepLabels(context, box, steps);
    else if (box.cols > 1) {
      for (const col of labelled(box.cols, box.wide, 18)) {
        context.fillText(String(col), box.left + (col + 0.5) * box.wide, box.bottom + 10);
      }
    }
    context.fillStyle = faint;
    if (steps || box.cols > 1) context.fillText(steps ? "step" : right, (box.left + box.right) / 2, box.bottom + 28);
    context.save();
    context.translate(10, (box.top + box.bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(down, 0, 0);
    context.restore();
  }

  /** The cell under a mouse event: `{row, col}`, with `col` null on a row's label; null elsewhere. */
  hit(event) {
    const { box } = this;
    if (!box) return null;
    const bounds = this.paper.canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - bounds.top - box.top) / box.tall);
    const x = event.clientX - bounds.left;
    const col = Math.floor((x - box.left) / box.wide);
    if (row < 0 || row >= box.rows || col >= box.cols) return null;
    return { row, col: x < box.left ? null : col };
  }
}

/** The room that a map of layers and heads takes of a width and a height: `{width, height}`. */
export function roomOf(rows, cols, width, height) {
  const wide = Math.min((width - LEFT - BAR - 4) / cols, cols === 1 ? 2 * LARGEST : LARGEST);
  const tall = Math.min((height - TOP - BOTTOM) / rows, LARGEST);
  return { width: LEFT + wide * cols + BAR + 4, height: TOP + tall * rows + BOTTOM };
}

function paintAbsent(context, box, values, exists, ground, faint) {
  context.save();
  context.beginPath();
  for (let row = 0; row < box.rows; row++) {
    for (let col = 0; col < box.cols; col++) {
      if (Number.isFinite(values[row * box.cols + col]) || (exists && !exists(row, col))) continue;
      context.rect(box.left + col * box.wide, box.top + row * box.tall, box.wide, box.tall);
    }
  }
  context.clip();
  context.fillStyle = ground;
  context.fillRect(box.left, box.top, box.right - box.left, box.bottom - box.top);
  context.strokeStyle = faint;
  context.beginPath();
  const height = box.bottom - box.top;
  for (let x = box.left - height; x < box.right; x += 6) {
    context.moveTo(x, box.bottom);
    context.lineTo(x + height, box.top);
  }
  context.stroke();
  context.restore();
}

function lines(context, box, ground) {
  context.strokeStyle = ground;
  context.beginPath();
  for (let row = 1; row < box.rows; row++) {
    context.moveTo(box.left, box.top + row * box.tall);
    context.lineTo(box.right, box.top + row * box.tall);
  }
  for (let col = 1; col < box.cols; col++) {
    context.moveTo(box.left + col * box.wide, box.top);
    context.lineTo(box.left + col * box.wide, box.bottom);
  }
  context.stroke();
}

function stepLabels(context, box, steps) {
  let free = -Infinity;
  for (const col of labelled(box.cols, box.wide, 56)) {
    const text = String(steps[col]);
    const x = box.left + (col + 0.5) * box.wide;
    if (x - context.measureText(text).width / 2 < free) continue;
    context.fillText(text, x, box.bottom + 10);
    free = x + context.measureText(text).width / 2 + 8;
  }
}
