// One run's summary: the verdict, its findings on a time line, and a card for each.

import { el, refill } from "./dom.js";
import { FindingCard } from "./finding_card.js";
import { LEVELS, keyOf, mapOf, movedMost, movedText, place, span, title } from "./findings.js";
import { roving } from "./roving.js";

const DRAWN = 12; // cards with pictures
const MOVED = 5;
const BUDGET = 256 * 2 ** 20; // bytes that the server reads to compare the ends of a run

export class SummaryPanel {
  constructor(app) {
    this.app = app;
    this.verdict = el("div", { class: "verdict", role: "status" });
    this.line = roving(el("div", { class: "timeline" }), "both");
    this.cards = el("div", { class: "cards" });
    this.moved = roving(el("div", { class: "moved" }), "down");
    this.checked = el("p", { class: "muted" });
    this.element = el("section", { class: "summary-run" }, this.verdict, this.line, this.cards, this.moved, this.checked);
    this.shown = [];
  }

  /** `name` is what the run is called beside another one; empty if it stands alone. */
  paint(run, name) {
    this.run = run;
    const found = this.app.findings(run);
    this.found = found instanceof Error ? null : found;
    const key = JSON.stringify([run, name, found instanceof Error ? found.message : found]);
    if (key !== this.key) this._build(found, name);
    this.key = key;
    this.shown.slice(0, DRAWN).forEach((card) => card.paint(run));
    this._moved();
  }

  _build(found, name) {
    this._verdict(found, name);
    const findings = this.found?.findings ?? [];
    const cards = JSON.stringify([this.run, findings]);
    if (cards !== this.built) { // as it is while samples come that change no finding
      this.shown = findings.map((finding, i) => new FindingCard(this.app, finding, i < DRAWN, () => this._open(mapOf(finding))));
      refill(this.cards, ...this.shown.map(({ element }) => element));
    }
    this.built = cards;
    this._timeline(findings);
    const rules = this.found?.looked_for ?? [];
    this.checked.textContent = rules.length ? `Looked for ${rules.length} ${rules.length === 1 ? "thing" : "things"}: ${rules.map((rule) => title(rule).toLowerCase()).join(", ")}.` : "";
  }

  _verdict(found, name) {
    const level = this.found?.level ?? "unknown";
    const { sign } = LEVELS[level] ?? LEVELS.unknown;
    this.verdict.dataset.level = level;
    const run = name ? el("span", { class: "run", title: this.run }, `${name}: ${this.run}`) : null;
    if (!this.found) {
      const text = found instanceof Error ? `The findings of this run could not be read (${found.message}).` : "Loading…";
      this.verdict.replaceChildren(run ?? "", el("h2", {}, text));
      return;
    }
    const { verdict, gaps, samples, last_step: last, findings } = this.found;
    const open = findings.filter((f) => f.until_step === null).length;
    const ended = findings.length - open;
    const counts = [`${samples} sample${samples === 1 ? "" : "s"}${last === null ? "" : ` up to step ${last}`}`];
    if (findings.length) counts.unshift(`${open} open`, `${ended} ended`);
    this.verdict.replaceChildren(
      run ?? "",
      el("span", { class: "sign", "aria-hidden": "true" }, sign),
      el("h2", {}, ...verdict.split("`").map((text, i) => (i % 2 ? el("code", {}, text) : text))), // what to type
      el("span", { class: "muted" }, `${counts.join(" · ")}${gaps ? `. ${gaps}` : ""}`));
  }

  /** A bar for each finding, by the step at which it began. */
  _timeline(findings) {
    this.line.hidden = !findings.length;
    if (!findings.length) return;
    const { first_step: first, last_step: last } = this.found;
    const rows = [...findings].sort((a, b) => a.since_step - b.since_step).flatMap((finding) => {
      const { left, width, open } = place(finding, first, last);
      const { sign, word } = LEVELS[finding.severity];
      const label = `${word}: ${title(finding.rule)}, ${span(finding)}. ${finding.message}`;
      const bar = el("button", {
        type: "button", class: "bar", title: `${label}\nClick to open the map.`, "aria-label": label,
        dataset: { level: finding.severity, ended: String(!open), key: keyOf(finding) }, style: { left: `${left}%`, width: `max(${width}%, 14px)` },
        onclick: () => this._open(mapOf(finding)),
      }, sign);
      return [el("span", { class: "name", title: label }, title(finding.rule)), el("div", { class: "track" }, bar)];
    });
    refill(this.line, ...rows, el("span", { class: "muted" }, "step"),
      el("div", { class: "axis" }, ...[0, 0.5, 1].map((share) => el("span", {}, String(Math.round(first + share * (last - first)))))));
  }

  /** Opens the map of this run, which becomes run A. */
  _open(patch) {
    const { app, run } = this;
    app.update({ ...patch, run, other: run === app.state.run ? app.state.other : app.state.run });
  }

  /** What moved most, where nothing is to be reported. */
  _moved() {
    const { app, run } = this;
    this.most = null;
    this.moved.hidden = !this.found || this.found.findings.some((f) => f.until_step === null) || !this.found.samples;
    if (this.moved.hidden) return;
    const names = app.metricNames(run);
    const key = app.index.metrics.filter((spec) => spec.headline && names.includes(spec.name));
    const fits = app.samplesOf(run, BUDGET / Math.max(key.length, 1)) >= this.found.samples;
    const metrics = (fits ? key : []).map((spec) => ({ spec, series: app.series(run, spec.name, 2) })).filter(({ series }) => series?.steps.length > 1);
    const moved = movedMost(metrics, MOVED);
    this.most = moved[0]?.metric;
    const [first, last] = metrics[0]?.series.steps ?? [];
    const all = moved.length ? "What moved most," : "No headline metric moved by more than 1 %";
    const head = metrics.length ? `${all} from step ${first} to ${last}` : fits ? "" : "The run is too large to compare its ends here; Overview shows all metrics.";
    const text = JSON.stringify([head, moved]);
    if (text === this.movedKey) return;
    this.movedKey = text;
    const open = ({ metric, layer }) => el("button", {
      type: "button", dataset: { key: metric }, title: `Open the evolution of ${metric}`,
      onclick: () => this._open({ view: "evolution", metric, step: null, finding: "", picked: layer === null ? [] : [{ layer, head: null }] }),
    }, "Show me");
    refill(this.moved, el("h3", {}, head), el("ul", {}, ...moved.map((m) => el("li", {}, movedText(m), " ", open(m)))));
  }

  /** What to look at next: the metric of the worst open finding, or else the one that moved most, and why; or null. */
  leading() {
    const [worst] = (this.found?.findings ?? []).filter((f) => f.until_step === null && f.metric);
    if (worst) return { metric: worst.metric, stack: worst.stack, why: `${title(worst.rule)} was found in it ${span(worst)}.` };
    return this.most ? { metric: this.most, stack: this.app.state.stack, why: "It changed most in this run." } : null;
  }

  canvases() {
    return this.shown.slice(0, DRAWN).flatMap((card) => card.canvases());
  }
}
