// Colours of values: one scale that is uniform in lightness, one that diverges from zero. Both keep their order
// for every kind of colour vision.

// viridis (Smith & van der Walt, CC0) at 20 equal distances, as in the pictures of the loggers
const VIRIDIS =
  "440154 481467 482576 453781 404688 39558c 33638d 2d718e 287d8e 238a8d " +
  "1f968b 20a386 29af7f 3cbc75 56c667 74d055 94d840 b8de29 dce318 fde725";
// blue below, orange above (ColorBrewer's Blues and Oranges, Apache-2.0)
const DIVERGING = "08306b 08519c 2171b5 6baed6 c6dbef f7f7f7 fdd0a2 fd8d3c d94801 a63603 7f2704";
const STEPS = 256;

function table(points) {
  const anchors = points.split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const colours = [];
  for (let i = 0; i < STEPS; i++) {
    const place = (i / (STEPS - 1)) * (anchors.length - 1);
    const left = Math.min(Math.floor(place), anchors.length - 2);
    const share = place - left;
    colours.push(anchors[left].map((channel, c) => Math.round(channel + share * (anchors[left + 1][c] - channel))));
  }
  return colours;
}

export const SEQUENTIAL_COLOURS = table(VIRIDIS);
export const DIVERGING_COLOURS = table(DIVERGING);
/** Of lines: Okabe & Ito's, told apart by every kind of colour vision, without the yellow that no paper shows. */
export const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1", "#7f7f7f"];

const CAP = 24; // colours at an end of a scale that are kept for values beyond it

/**
 * A scale from `low` to `high`; `signed` ones are symmetric around zero and diverge. `from` is the number from
 * which on it is logarithmic, or null. `ends` are the extremes of all values: where they lie beyond the scale it
 * has a cap, the outermost colour, which no value within has.
 */
export function scale(low, high, signed = false, from = null, ends = [low, high]) {
  if (signed) high = Math.max(Math.abs(low), Math.abs(high)) || 1;
  if (signed) low = -high;
  if (!(low > from)) from = null; // no value has a logarithm
  if (!(high > low)) [low, high] = from === null ? [low - 0.5, high + 0.5] : [from + (low - from) / 2, from + 2 * (low - from)];
  const under = ends[0] < low;
  const over = ends[1] > high;
  const bounds = [from === null ? low : Math.log(low - from), from === null ? high : Math.log(high - from)];
  const first = under ? CAP : 0;
  const last = STEPS - 1 - (over ? CAP : 0);
  return { low, high, from, under, over, ends, bounds, first, last, colours: signed ? DIVERGING_COLOURS : SEQUENTIAL_COLOURS };
}

/** Place of a finite value on a scale: an index of its colours, of those beyond it an outermost one. */
export function place({ low, high, from, bounds, first, last }, value) {
  if (value < low) return 0;
  if (value > high) return STEPS - 1;
  const share = ((from === null ? value : Math.log(value - from)) - bounds[0]) / (bounds[1] - bounds[0]);
  return first + Math.round(share * (last - first));
}

/** The value at a share of the way along a scale. */
export function valueAt({ from, bounds }, share) {
  const at = bounds[0] + share * (bounds[1] - bounds[0]);
  return from === null ? at : Math.exp(at) + from;
}

export function css([red, green, blue]) {
  return `rgb(${red}, ${green}, ${blue})`;
}

/** Whether black or white is read better on a colour. */
export function ink([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000000" : "#ffffff";
}
