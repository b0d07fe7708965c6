// A canvas that is sharp on every screen and takes its colours from the page's style sheet.

import { el } from "./dom.js";

export const FONT = "12px Roboto, 'Segoe UI', system-ui, sans-serif";

export class Paper {
  /** `label` is what a screen reader says in place of the picture. */
  constructor(label) {
    this.canvas = el("canvas", { role: "img", "aria-label": label });
    this.element = el("div", { class: "paper" }, this.canvas);
    this.width = 0;
    this.height = 0;
  }

  /** Clears it at the size that its element has (or a given height), and returns a context in CSS pixels. */
  begin(height = this.element.clientHeight) {
    const ratio = window.devicePixelRatio || 1;
    const width = this.element.clientWidth;
    if (this.width !== width || this.height !== height || this.ratio !== ratio) {
      [this.width, this.height, this.ratio] = [width, height, ratio];
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${height}px`;
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = FONT;
    context.lineWidth = 1;
    return context;
  }
}

let colours = null;

/** The colours of the page: ink, faint ink, lines, ground, mark, curves of the run. Read once per theme. */
export function theme() {
  if (!colours) {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    colours = { ink: read("--ink"), faint: read("--faint"), line: read("--line"), ground: read("--ground"), mark: read("--mark"), loss: read("--loss"), score: read("--score"), rate: read("--faint"), dark: document.documentElement.dataset.theme === "dark" };
  }
  return colours;
}

export function forgetTheme() {
  colours = null;
}

/** Text cut in the middle to a width: names differ at their ends. */
export function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const cut = (kept) => `${text.slice(0, Math.ceil(kept / 2))}…${text.slice(text.length - Math.floor(kept / 2))}`;
  let kept = text.length - 1;
  while (kept > 1 && context.measureText(cut(kept)).width > width) kept--;
  return cut(kept);
}
