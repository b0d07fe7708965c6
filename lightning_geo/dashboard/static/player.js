// The step slider: drag it, play it, or use the keyboard.

import { el } from "./dom.js";

const PACE = 120; // milliseconds a sample
const LONGEST = 12000; // milliseconds: of a longer run samples are passed over

export class Player {
  constructor(app) {
    this.app = app;
    this.button = el("button", { type: "button", title: "Play (space)", "aria-label": "Play", onclick: () => this.toggle() }, "▶");
    this.slider = el("input", { type: "range", min: 0, max: 0, step: 1, "aria-label": "step", oninput: () => this._go(Number(this.slider.value)) });
    this.label = el("output", {});
    this.element = el("div", { class: "player" }, this.button, this.slider, this.label);
    document.addEventListener("keydown", (event) => this._key(event));
  }

  /** `hidden` in a view that shows all steps alike. */
  paint(hidden = false) {
    this.element.hidden = hidden;
    const series = this.app.spec && this.app.series(this.app.state.run);
    this.element.classList.toggle("idle", !series);
    if (!series) return;
    const last = series.steps.length - 1;
    this.slider.max = String(last);
    this.slider.value = String(this.app.sample());
    const thinned = series.total > series.steps.length ? `, ${series.steps.length} of ${series.total} samples shown` : "";
    this.label.textContent = `step ${this.app.step()} of ${series.steps[last]}${this.app.state.step === null ? ", newest" : ""}${thinned}`;
    this.slider.setAttribute("aria-valuetext", this.label.textContent);
  }

  _go(sample) {
    const { steps } = this.app.series(this.app.state.run);
    this.app.goTo(steps[Math.max(0, Math.min(steps.length - 1, sample))]);
  }

  toggle() {
    if (this.timer) return this.stop();
    const series = this.app.series(this.app.state.run);
    if (!series) return;
    if (this.app.sample() === series.steps.length - 1) this._go(0);
    const stride = Math.max(1, Math.ceil((series.steps.length * PACE) / LONGEST));
    this.timer = setInterval(() => this._tick(stride), PACE);
    this._show();
  }

  _tick(stride) {
    const series = this.app.series(this.app.state.run);
    if (!series || this.app.sample() >= series.steps.length - 1) return this.stop();
    this._go(this.app.sample() + stride);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this._show();
  }

  _show() {
    this.button.textContent = this.timer ? "⏸" : "▶";
    this.button.setAttribute("aria-label", this.timer ? "Pause" : "Play");
  }

  _key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target !== this.slider && event.target.closest("select, input")) return;
    if (event.key === " " && event.target.closest("button, summary")) return; // it presses the button
    if (this.element.hidden || !this.app.spec || !this.app.series(this.app.state.run)) return;
    const far = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: -far, ArrowRight: far, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity };
    if (event.key === " ") this.toggle();
    else if (event.key in moves) this._go(this.app.sample() + moves[event.key]);
    else return;
    event.preventDefault();
  }
}
