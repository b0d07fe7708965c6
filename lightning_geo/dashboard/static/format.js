// Numbers as text.

/** Three significant digits, as much as a picture tells; "absent" for what is not defined. */
export function number(value) {
  if (!Number.isFinite(value)) return "absent";
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(2).replace("-", "−");
  const text = size >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(3)));
  return text.replace("-", "−");
}

/** As it was set: hyperparameters are round numbers, however small. */
export function exact(value) {
  return String(Number(value.toPrecision(6))).replaceAll("-", "−");
}

/** With its sign, for differences. */
export function signed(value) {
  return value > 0 ? `+${number(value)}` : number(value);
}

/** With its unit; ratios have none. */
export function withUnit(text, unit) {
  return unit && unit !== "1" ? `${text} ${unit}` : text;
}

/** A name cut in the middle: the ends tell runs of a sweep apart. */
export function middle(name, most = 36) {
  const letters = [...name];
  return letters.length <= most ? name : `${letters.slice(0, 12).join("")}…${letters.slice(13 - most).join("")}`;
}

/** Round numbers from `low` to `high`, about `count` of them. */
export function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const result = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) result.push(Number((i * step).toPrecision(12)));
  return result;
}

/** Indices of rows or columns that have room for a label, at round distances. */
export function labelled(count, cell, room) {
  let step = 1;
  for (let i = 0; step * cell < room; i++) step *= i % 3 === 1 ? 2.5 : 2; // 1, 2, 5, 10, 20, 50, …
  return Array.from({ length: Math.ceil(count / step) }, (_, i) => i * step);
}

/** A value for a cell of a CSV file; text that a spreadsheet would run as a formula is quoted off. */
export function csvCell(value) {
  if (typeof value === "number") return Number.isFinite(value) ? String(value) : "";
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function csv(rows) {
  return rows.map((row) => row.map(csvCell).join(",") + "\r\n").join("");
}
