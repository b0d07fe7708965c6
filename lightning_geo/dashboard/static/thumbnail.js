// Small drawings of what a metric tells: attention patterns, cones, clouds of points. SVG, in the page's colours.

import { SEQUENTIAL_COLOURS, css } from "./colour.js";

const SIZE = 64;
const TOKENS = 8;
const SVG = "http://www.w3.org/2000/svg";
const FOCUS = [2, 0, 5, 1, 7, 4, 6, 3]; // which key each query of a focused head picks

/** Attention weights before each row is made to add to 1: of query i and key j. */
const PATTERNS = {
  uniform: () => 1,
  soft: (i, j) => 1 + 2 * (FOCUS[i] === j),
  focused: (i, j) => Number(FOCUS[i] === j),
  stripes: (i, j) => Number(j === 2 || j === 5),
  self: (i, j) => Number(i === j),
  previous: (i, j) => Number(j === Math.max(i - 1, 0)),
  next: (i, j) => Number(j === Math.min(i + 1, TOKENS - 1)),
  first: (i, j) => Number(j === 0),
  back: (i, j) => Number(j < i || i === 0),
  ahead: (i, j) => Number(j > i || i === TOKENS - 1),
  near: (i, j) => Number(Math.abs(i - j) <= 1),
  far: (i, j) => Number(Math.abs(i - j) >= 4),
  special: (i, j) => Number(j === 0 || j === TOKENS - 1),
  text: (i, j) => Number(j > 0 && j < TOKENS - 1),
  sink: (i, j) => 0.15 * (1 + 2 * (FOCUS[i] === j)),
  causal: (i, j) => Number(j <= i),
  unpadded: (i, j) => Number(j < TOKENS - 2),
  groups: (i, j) => Number(Math.floor(i / 3) === Math.floor(j / 3)),
};

/** Weights of a pattern, rows that add to 1; of "sink" a column without a key stands before the keys. */
export function weights(name) {
  return Array.from({ length: TOKENS }, (_, i) => {
    const row = Array.from({ length: TOKENS }, (_, j) => PATTERNS[name](i, j) + 0.01);
    if (name === "sink") row.unshift(8);
    const sum = row.reduce((a, b) => a + b);
    return row.map((weight) => weight / sum);
  });
}

const rect = (x, y, width, height, fill) => ["rect", { x, y, width, height, fill }];
const line = (x1, y1, x2, y2, stroke = "var(--ink)") => ["line", { x1, y1, x2, y2, stroke, "stroke-width": 1.75, "stroke-linecap": "round" }];
const round = (number) => Number(number.toFixed(2));
/** Evenly spread numbers in [0, 1) that look random. */
const spread = (i, step) => (i * step) % 1;

function arrow(x, y, degrees, length, colour) {
  const towards = (angle, size) => [round(x + size * Math.cos(angle)), round(y - size * Math.sin(angle))];
  const angle = (degrees * Math.PI) / 180;
  const [tipX, tipY] = towards(angle, length);
  const barb = (turn) => [round(tipX + 5 * Math.cos(angle + turn)), round(tipY - 5 * Math.sin(angle + turn))];
  return [line(x, y, tipX, tipY, colour), line(tipX, tipY, ...barb(2.6), colour), line(tipX, tipY, ...barb(-2.6), colour)];
}

function grid(rows, fill) {
  const cell = SIZE / Math.max(rows.length, rows[0].length);
  return rows.flatMap((row, i) => row.map((value, j) => rect(round(j * cell), round(i * cell), round(cell - 0.6), round(cell - 0.6), fill(value, i, j))));
}

const heights = { left: [3, 8, 5, 9, 24, 48, 56, 30], right: [30, 56, 48, 24, 9, 5, 8, 3], normal: [4, 14, 34, 54, 54, 34, 14, 4], outliers: [6, 0, 3, 58, 58, 3, 0, 6], even: [34, 36, 33, 35, 36, 34, 33, 35] };
const entries = {
  symmetric: (i, j) => spread(Math.min(i, j) * 7 + Math.max(i, j), 0.618),
  antisymmetric: (i, j) => (i === j ? 0.5 : i < j ? spread(i * 7 + j, 0.618) : 1 - spread(j * 7 + i, 0.618)),
  rows: (i, j) => (i === 1 || i === 5 ? 0.95 : 0.35 * spread(i * 7 + j, 0.618)),
  columns: (i, j) => (j === 1 || j === 5 ? 0.95 : 0.35 * spread(i * 7 + j, 0.618)),
};

const DRAWINGS = {
  // the root shows small weights too
  pattern: (name) => grid(weights(name), (weight) => css(SEQUENTIAL_COLOURS[Math.round(255 * Math.sqrt(weight))])),
  matrix: (name) => grid(Array.from({ length: 7 }, (_, i) => Array.from({ length: 7 }, (_, j) => entries[name](i, j))), (value) => css(SEQUENTIAL_COLOURS[Math.round(255 * value)])),
  fan: (degrees) => [0, 1, 2, 3, 4].flatMap((i) => arrow(SIZE / 2, SIZE - 14, 90 + (i / 4 - 0.5) * degrees, 24 + 6 * spread(i, 0.618) + (i % 2) * (degrees < 90 ? 14 : 0))),
  cloud: (ratio) => Array.from({ length: 42 }, (_, i) => {
    const [angle, reach] = [2 * Math.PI * spread(i, 0.618), 27 * Math.sqrt((i + 0.5) / 42)];
    const [x, y] = [reach * Math.cos(angle), ratio * reach * Math.sin(angle)];
    return ["circle", { cx: round(SIZE / 2 + 0.8 * x - 0.6 * y), cy: round(SIZE / 2 - 0.6 * x - 0.8 * y), r: 2, fill: "var(--ink)" }];
  }),
  turned: (degrees) => [...arrow(8, SIZE - 8, 0, 46, "var(--faint)"), ...arrow(8, SIZE - 8, degrees, 46)],
  leaning: (degrees) => [-12, 0, 12].flatMap((turn) => [...arrow(SIZE / 2, SIZE / 2, 90 + turn, 26, "#0072b2"), ...arrow(SIZE / 2, SIZE / 2, 90 + turn - degrees, 26, "#d55e00")]),
  lengths: (part) => [0, 1, 2].flatMap((i) => arrow(6, 14 + 18 * i, 0, part * (44 + 4 * i))),
  twins: (same) => [0, 1].flatMap((head) => [0, 1, 2, 3].map((i) => {
    const height = 8 + 46 * spread(i + 1, head && !same ? 0.73 : 0.31);
    return rect(34 * head + 7 * i + 1, round(SIZE - 4 - height), 6, round(height), head ? "#d55e00" : "#0072b2");
  })),
  histogram: (name) => heights[name].map((height, i) => rect(8 * i + 0.5, SIZE - 2 - height, 7, height, "var(--ink)")),
  share: (part) => grid(Array.from({ length: 5 }, (_, i) => Array.from({ length: 5 }, (_, j) => spread(5 * i + j, 0.618) < part)), (filled) => (filled ? "var(--ink)" : "var(--line)")),
};

/** What a drawing is made of: `[tag, attributes]` each. */
export function shapes([kind, what]) {
  return DRAWINGS[kind](what);
}

/** A drawing as an element; `label` is what a screen reader says in its place. */
export function thumbnail(example, label) {
  const element = (tag, attributes) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const svg = element("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", "aria-label": label });
  svg.append(...shapes(example).map(([tag, attributes]) => element(tag, attributes)));
  return svg;
}
