// Colours of lines and frames that can be seen on the page: 3 : 1 against its ground (WCAG 2.2, 1.4.11).

import { LINES, SEQUENTIAL_COLOURS, css } from "./colour.js";

const ENOUGH = 3;
const GROUNDS = { light: [255, 255, 255], dark: [31, 31, 31] }; // --ground of the style sheet

/** Relative luminance of an sRGB colour. */
export function luminance(colour) {
  const [red, green, blue] = colour.map((channel) => {
    const share = channel / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

export function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

/** A colour moved towards ink, by as little as it takes to be seen. */
export function visible(colour, dark) {
  const ground = GROUNDS[dark ? "dark" : "light"];
  const end = dark ? 255 : 0;
  for (let share = 0; share < 1; share += 0.02) {
    const mixed = colour.map((channel) => Math.round(channel + share * (end - channel)));
    if (contrast(mixed, ground) >= ENOUGH) return mixed;
  }
  return [end, end, end];
}

export const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const PICKS = { light: LINES.map((hex) => visible(rgb(hex), false)), dark: LINES.map((hex) => visible(rgb(hex), true)) };
const seen = (dark) => SEQUENTIAL_COLOURS.filter((colour) => contrast(colour, GROUNDS[dark ? "dark" : "light"]) >= ENOUGH);
const GRADED = { light: seen(false), dark: seen(true) };

/** Of the picked cell at a position. */
export function pickColour(position, dark = false) {
  const picks = PICKS[dark ? "dark" : "light"];
  return css(picks[position % picks.length]);
}

/** Of `count` lines that have an order: the part of the sequential scale that is seen on the ground. */
export function graded(index, count, dark = false) {
  const colours = GRADED[dark ? "dark" : "light"];
  return css(colours[Math.round((count > 1 ? index / (count - 1) : 0.5) * (colours.length - 1))]);
}
