// What is written on the cells of a map: numbers, and a mark where a value lies beyond the scale.

import { ink, place } from "./colour.js";
import { triangle } from "./colour_bar.js";
import { number } from "./format.js";

const LEAST = 7; // pixels of a cell from which on it is marked

/** Marks the cells whose values lie beyond the scale: a triangle in a corner, up for above, down for below. */
export function paintBeyond(context, { left, top, wide, tall, cols }, values, scale) {
  if (!(scale.under || scale.over) || Math.min(wide, tall) < LEAST) return;
  const size = Math.max(4, Math.min(9, 0.4 * Math.min(wide, tall)));
  for (let i = 0; i < values.length; i++) {
    const up = values[i] > scale.high;
    if (!(up || values[i] < scale.low) || !Number.isFinite(values[i])) continue;
    const [row, col] = [Math.floor(i / cols), i % cols];
    context.fillStyle = ink(scale.colours[place(scale, values[i])]);
    triangle(context, left + (col + 1) * wide - size - 2, top + row * tall + 2, size, 0.8 * size, up);
  }
}

export function paintNumbers(context, box, values, scale) {
  context.textAlign = "center";
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i])) continue;
    context.fillStyle = ink(scale.colours[place(scale, values[i])]);
    const [row, col] = [Math.floor(i / box.cols), i % box.cols];
    context.fillText(number(values[i]), box.left + (col + 0.5) * box.wide, box.top + (row + 0.5) * box.tall);
  }
}
