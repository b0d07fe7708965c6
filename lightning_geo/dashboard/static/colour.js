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

/** A scale from `low` to `high`; `signed` ones are symmetric around zero and diverge. */
export function scale(low, high, signed = false) {
  if (signed) {
    const reach = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return { low: -reach, high: reach, colours: DIVERGING_COLOURS };
  }
  if (!(high > low)) [low, high] = [low - 0.5, high + 0.5];
  return { low, high, colours: SEQUENTIAL_COLOURS };
}

/** Place of a finite value on a scale: an index of its colours, those beyond the ends at the ends. */
export function place({ low, high }, value) {
  const share = (value - low) / (high - low);
  return Math.max(0, Math.min(STEPS - 1, Math.round(share * (STEPS - 1))));
}

export function css([red, green, blue]) {
  return `rgb(${red}, ${green}, ${blue})`;
}

/** Whether black or white is read better on a colour. */
export function ink([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#000000" : "#ffffff";
}
