// The line above a view that says what a metric is, and the "?" that explains it.

import { el } from "./dom.js";
import { examplesOf } from "./examples.js";
import { number } from "./format.js";
import { thumbnail } from "./thumbnail.js";

const MEASURED = "BERT is the 6-layer all-MiniLM-L6-v2 on news stories of 96 tokens, of 128 in its fine-tuning; the untrained decoder is a GPT-2 of its size.";

/** Unit and bounds of a metric as text; "no unit" for ratios. */
export function bounds({ unit, range: [low, high] }) {
  const span = low === null ? (high === null ? "any number" : `at most ${number(high)}`) : high === null ? `${number(low)} or more` : `${number(low)} to ${number(high)}`;
  return `${unit === "1" ? "no unit" : unit}, ${span}`;
}

/** Name of a metric for people; its id where nobody gave it one. */
export function titleOf(spec) {
  if (!spec.title) return spec.name;
  return spec.part && !spec.name.endsWith(".head") ? `${spec.title} · ${spec.part}` : spec.title;
}

export class Heading {
  constructor() {
    this.line = el("div", { class: "line" });
    this.panel = el("div", { class: "explained", role: "region", "aria-label": "What this metric means", hidden: true });
    this.ask = el("button", { type: "button", class: "ask", title: "What is this?", "aria-label": "What is this metric?", "aria-expanded": "false", onclick: () => this._open(this.panel.hidden) }, "?");
    this.element = el("div", { class: "heading" }, this.line, this.panel);
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.panel.hidden) return;
      event.stopPropagation();
      this._open(false);
      this.ask.focus();
    });
  }

  /** Shows a view's own `words`, or what a metric is; null for nothing. What has not changed keeps the focus. */
  paint(words, spec) {
    if (words) this.line.replaceChildren(...words);
    const shown = words ? null : spec;
    if (shown !== this.spec) { // asked for anew every few seconds, and mostly the same
      const key = JSON.stringify(shown);
      if (key !== this.key && !words) this._paint(spec);
      this.key = key;
    }
    this.spec = shown;
    if (!shown) this._open(false);
  }

  _paint(spec) {
    this.line.replaceChildren(...(spec ? [
      el("h2", {}, titleOf(spec), " ", spec.title ? el("code", { class: "id" }, spec.name) : null),
      el("span", {}, spec.question || spec.meaning), this.ask,
      el("span", { class: "muted" }, [bounds(spec), spec.usual && `usual: ${spec.usual}`].filter(Boolean).join("; ")),
    ] : []));
    this._open(!this.panel.hidden && Boolean(spec));
    if (spec) this._explain(spec);
  }

  _open(open) {
    this.panel.hidden = !open;
    this.ask.setAttribute("aria-expanded", String(open));
  }

  _explain(spec) {
    const row = (name, text) => (text ? [el("dt", {}, name), el("dd", {}, text)] : []);
    const measured = /\bBERT\b/.test(spec.usual) ? el("small", { class: "muted" }, ` ${MEASURED}`) : null;
    const pictures = examplesOf(spec);
    const figure = (place) => el("figure", {}, thumbnail(pictures[place], `example of a ${["low", "high"][place]} value`), el("figcaption", {}, ["Low", "High"][place]));
    this.panel.replaceChildren(
      el("div", { class: "text" },
        el("b", {}, titleOf(spec)), spec.question ? ` ${spec.question}` : "",
        el("dl", {},
          ...row("Higher", spec.higher), ...row("Lower", spec.lower), ...row("Meaning", spec.higher ? "" : spec.meaning),
          ...row("Usual", spec.usual && [spec.usual, ".", measured]), ...row("When to worry", spec.worry),
          ...row("Defined as", el("code", {}, spec.formula)), ...row("Unit", `${bounds(spec)}${spec.log_from === null ? "" : "; colours on a logarithmic scale"}`), ...row("Source", spec.source))),
      pictures ? el("div", { class: "examples" }, figure(0), figure(1)) : "",
      el("button", { type: "button", class: "close", title: "Close (Esc)", "aria-label": "Close", onclick: () => {
        this._open(false);
        this.ask.focus();
      } }, "×"));
  }
}
