// Signs on the cells of a map that diverges from zero, so that it can be read without its colours.

import { ink, place } from "./colour.js";

const SMALLEST = 5; // pixels of a cell that has room for a sign
const NUMBERED = [42, 17]; // width and height of cells that hold their number, sign and all, see `Heatmap`
const FAINT = 0.2; // of the scale's reach: below it a cell is nearly white, and nothing to be mistaken

/** Where signs belong: `[cell, positive]` of the cells whose value is far enough from zero. */
export function signed(values, { low, high }) {
  if (!(low < 0 && low === -high)) return [];
  const found = [];
  for (let i = 0; i < values.length; i++) if (Math.abs(values[i]) >= FAINT * high) found.push([i, values[i] > 0]);
  return found;
}

/** Draws them on what a heatmap has drawn: a bar for less, a cross for more. */
export function paintSigns({ paper, box }, values, scale) {
  const size = Math.min(box.wide, box.tall);
  if (size < SMALLEST || (box.wide >= NUMBERED[0] && box.tall >= NUMBERED[1])) return;
  const context = paper.canvas.getContext("2d");
  const arm = Math.max(1.5, Math.min(4.5, size * 0.28));
  const paths = new Map(); // by colour: two strokes in place of a thousand
  for (const [cell, positive] of signed(values, scale)) {
    const colour = ink(scale.colours[place(scale, values[cell])]);
    const path = paths.get(colour) ?? paths.set(colour, new Path2D()).get(colour);
    const x = box.left + ((cell % box.cols) + 0.5) * box.wide;
    const y = box.top + (Math.floor(cell / box.cols) + 0.5) * box.tall;
    path.moveTo(x - arm, y);
    path.lineTo(x + arm, y);
    if (!positive) continue;
    path.moveTo(x, y - arm);
    path.lineTo(x, y + arm);
  }
  context.lineWidth = size < 10 ? 1 : 1.5;
  for (const [colour, path] of paths) {
    context.strokeStyle = colour;
    context.stroke(path);
  }
  context.lineWidth = 1;
}
