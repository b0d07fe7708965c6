// The line above a view that says what a metric is.

import { el } from "./dom.js";

export function explained(spec) {
  const unit = spec.unit === "1" ? "no unit" : spec.unit;
  const bounds = spec.range.map((end) => end ?? "∞");
  bounds[0] = spec.range[0] ?? "−∞";
  return [
    el("h2", { title: `Source: ${spec.source}` }, spec.name),
    el("code", { title: `${unit}, from ${bounds[0]} to ${bounds[1]}` }, spec.formula),
    el("span", { class: "muted" }, `${unit}, ${bounds[0]} to ${bounds[1]}. ${spec.meaning}`),
  ];
}
