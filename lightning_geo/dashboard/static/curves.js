// What a run logged beside its geometry: loss, validation score, learning rate. No DOM: these run under `node --test`.
//
// A curve is { tag, steps, values }, NaN where the value was not finite. A run's are by role, as far as it has them.

import { title } from "./findings.js";
import { number } from "./format.js";

/** Each role: how it is called, and the dashes of its line; the score has dots. */
export const ROLES = {
  loss: { word: "Loss", dashes: [] },
  score: { word: "Score", dashes: [] },
  rate: { word: "Learning rate", dashes: [2, 3] },
};

const CLOSE = 6; // pixels between ticks that can be told apart

/** What the route `curves` sends. */
export function read(sent) {
  const curves = Object.fromEntries(Object.entries(sent.curves).map(([role, { tag, steps, values }]) =>
    [role, { tag, steps, values: Float64Array.from(values, (value) => value ?? NaN) }]));
  return { ...sent, curves };
}

/** Index of the last of ascending steps that is not after a step; -1 for none. */
export function before(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** What a curve had come to at a step, as text; empty before its first value. */
export function at(curve, step) {
  const index = curve ? before(curve.steps, step) : -1;
  return index < 0 ? "" : told(curve.values[index]);
}

function told(value) {
  return Number.isFinite(value) ? number(value) : "not finite";
}

/** What there is at a step, `reach` steps to either side of it. */
export function described({ epochs, evaluations }, findings, step, reach) {
  const here = Math.round(step);
  const parts = [`step ${here}`];
  const epoch = epochs[before(epochs.map(([first]) => first), here)];
  if (epoch) parts.push(`epoch ${epoch[1]}`);
  const evaluation = evaluations.find((found) => Math.abs(found - step) <= reach);
  if (evaluation !== undefined) parts.push(evaluation === here ? "evaluation" : `evaluation at ${evaluation}`);
  for (const { rule, since_step: since } of findings) {
    if (Math.abs(since - step) <= reach) parts.push(`${title(rule).toLowerCase()} begins${since === here ? "" : ` at ${since}`}`);
  }
  return parts.join(" · ");
}

/** Steps that get a tick, none if they would lie too close; `x` is the pixel of a step. */
export function ruled(steps, x) {
  if (steps.length < 2) return steps;
  const width = x(steps[steps.length - 1]) - x(steps[0]);
  return width / (steps.length - 1) >= CLOSE ? steps : [];
}

/** How two runs ended, by what both logged under the same tag: a text for the score and for the loss. */
export function outcome(a, b) {
  return ["score", "loss"].flatMap((role) => {
    const [one, other] = [a[role], b[role]];
    if (!one?.steps.length || !other?.steps.length || one.tag !== other.tag) return [];
    const [end, ending] = [one.steps.length - 1, other.steps.length - 1];
    const [step, late] = [one.steps[end], other.steps[ending]];
    const first = step === late ? "" : ` at step ${step}`;
    return [`${one.tag} ${told(one.values[end])}${first} against ${told(other.values[ending])} at step ${late}`];
  });
}
