// Where Map's layers over steps stand: below the map, beside it, or above the lines.

import { roomOf } from "./heatmap.js";

const GAP = 8; // pixels between the map and the layers over steps
const LOW = 130; // pixels that these need below the map
const NARROW = 280; // and beside it
const TALL = 520; // of the column at the right, for them to stand in it

/** Puts the layers over steps where the map of so many layers and heads leaves room. */
export function placeSteps({ board, side, steps, panel, heatmap }, { layers, heads }) {
  const { clientWidth: width, clientHeight: height } = board;
  const room = roomOf(layers, heads, width, height);
  const [right, below] = [width - room.width - GAP, height - room.height - GAP];
  let where = side.clientHeight >= TALL ? "side" : "none";
  if (below >= LOW && below * width >= right * height) where = "below";
  else if (right >= NARROW) where = "right";
  board.dataset.steps = where;
  heatmap.element.style.flex = where === "below" ? `0 0 ${room.height}px` : where === "right" ? `0 0 ${room.width}px` : "1 1 0";
  const { element } = steps;
  element.hidden = where === "none";
  if (where === "side" && element.parentElement !== side) panel.element.before(element);
  else if (where !== "side" && element.parentElement !== board) board.append(element);
}
