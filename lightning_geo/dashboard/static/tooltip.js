// What a cell says, beside the pointer: its value, its change, its course.

import { el } from "./dom.js";
import { Sparkline } from "./sparkline.js";

const AWAY = 14; // pixels from the pointer

export class Tooltip {
  /** In an element that it does not leave, and that holds the map. */
  constructor(within) {
    this.within = within;
    this.words = el("div", { class: "words" });
    this.line = new Sparkline("course of the cell over the run");
    this.element = el("div", { class: "tooltip control", "aria-hidden": "true", hidden: true }, this.words, this.line.element);
    within.append(this.element);
  }

  /** `told` is where, value, change; `course` is {xs, ys, at}, the index of the sample that is shown. */
  show({ clientX, clientY }, [where, value, change], { xs, ys, at }) {
    this.words.replaceChildren(el("b", {}, where), el("div", {}, value), el("div", { class: "muted" }, change));
    this.element.hidden = false;
    this.line.element.hidden = xs.length < 2;
    if (xs.length > 1) this.line.draw({ xs, ys, usual: [null, null], since: xs[at], until: null });
    const bounds = this.within.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const [x, y] = [clientX - bounds.left, clientY - bounds.top];
    const left = x + AWAY + width <= bounds.width ? x + AWAY : x - AWAY - width;
    const top = y + AWAY + height <= bounds.height ? y + AWAY : y - AWAY - height;
    this.element.style.left = `${Math.max(0, left)}px`;
    this.element.style.top = `${Math.max(0, top)}px`;
  }

  hide() {
    this.element.hidden = true;
  }
}
