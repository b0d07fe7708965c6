// The colour bar beside a map, and what lies beyond its ends: a cap on the bar, a mark on the cell.

import { css, ink, place, valueAt } from "./colour.js";
import { number } from "./format.js";

const WIDE = 12;
const CAP = 20; // pixels of the bar's height that a cap and its number take
const LEAST = 7; // pixels of a cell from which on it is marked

/** A triangle that points up or down, in a box. */
function triangle(context, x, y, width, height, up) {
  const [tip, foot] = up ? [y, y + height] : [y + height, y];
  context.beginPath();
  context.moveTo(x, foot);
  context.lineTo(x + width, foot);
  context.lineTo(x + width / 2, tip);
  context.closePath();
  context.fill();
}

/** Marks the cells whose values lie beyond the scale: a triangle in a corner, up for above, down for below. */
export function paintBeyond(context, { left, top, wide, tall, cols }, values, scale) {
  if (!(scale.under || scale.over) || Math.min(wide, tall) < LEAST) return;
  const size = Math.max(4, Math.min(9, 0.4 * Math.min(wide, tall)));
  for (let i = 0; i < values.length; i++) {
    const up = values[i] > scale.high;
    if (!up && !(values[i] < scale.low)) continue;
    const [row, col] = [Math.floor(i / cols), i % cols];
    context.fillStyle = ink(scale.colours[place(scale, values[i])]);
    triangle(context, left + (col + 1) * wide - size - 2, top + row * tall + 2, size, 0.8 * size, up);
  }
}

export function colourBar(context, box, scale, dark) {
  const whole = Math.max(box.bottom - box.top, 60);
  const left = box.right + 14;
  const [above, below] = [scale.over ? CAP : 0, scale.under ? CAP : 0];
  const [top, height] = [box.top + above, whole - above - below];
  const count = scale.last - scale.first + 1;
  for (let i = 0; i < count; i++) {
    context.fillStyle = css(scale.colours[scale.last - i]);
    context.fillRect(left, top + (i * height) / count, WIDE, height / count + 1);
  }
  context.textAlign = "left";
  for (const [there, index, y, end] of [[scale.over, scale.colours.length - 1, box.top + 1, 1], [scale.under, 0, top + height + 9, 0]]) {
    if (!there) continue;
    context.fillStyle = css(scale.colours[index]);
    triangle(context, left, y, WIDE, 10, end === 1);
    context.fillStyle = dark;
    context.fillText(number(scale.ends[end]), left + WIDE + 5, y + 5);
  }
  context.fillStyle = dark;
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    if (height < 120 && share % 0.5) continue;
    context.fillText(number(valueAt(scale, share)), left + WIDE + 5, top + (1 - share) * (height - 2) + 1);
  }
}
