// The colour bar beside a map, with a cap where values lie beyond its end.

import { css, valueAt } from "./colour.js";
import { number } from "./format.js";

const WIDE = 12;
const CAP = 20; // pixels of the bar's height that a cap and its number take

/** A triangle that points up or down, in a box. */
export function triangle(context, x, y, width, height, up) {
  const [tip, foot] = up ? [y, y + height] : [y + height, y];
  context.beginPath();
  context.moveTo(x, foot);
  context.lineTo(x + width, foot);
  context.lineTo(x + width / 2, tip);
  context.closePath();
  context.fill();
}

/** The scale with numbers; a cap at an end says how far the values beyond it go. */
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
