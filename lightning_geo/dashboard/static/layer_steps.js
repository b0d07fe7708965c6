// Layers down, steps to the right: how depth organises over training, as a picture that leads to its steps.

import { CellCursor } from "./cell_cursor.js";
import { number, signed, withUnit } from "./format.js";
import { Heatmap } from "./heatmap.js";
import { evolution } from "./series.js";
import { paintSigns } from "./signs.js";
import { summaryOf } from "./state.js";
import { pickColour } from "./trace_panel.js";

const made = new WeakMap(); // pictures by series

/** Of a run's metric as the state says; the same object while nothing of that has changed. */
export function pictureOf(series, spec, state) {
  const by = summaryOf(state, spec);
  const key = [state.change, by].join();
  if (made.get(series)?.key === key) return made.get(series).picture;
  const picture = evolution(series, by);
  if (state.change) {
    for (let layer = 0; layer < picture.layers; layer++) {
      const row = picture.values.subarray(layer * picture.samples, (layer + 1) * picture.samples);
      const [first] = row;
      for (let i = 0; i < row.length; i++) row[i] -= first;
    }
  }
  made.set(series, { key, picture });
  return picture;
}

/** Their colours, over all of them: means of layers reach less far than heads do. */
export function coloursOf(app, pictures) {
  const values = pictures.map((picture) => picture.values);
  const spread = summaryOf(app.state, app.spec) === "spread" && !app.state.change; // it has no sign, nor the metric's range
  return app.scales.ofValues(app.state, spread ? { ...app.spec, signed: false, range: [null, null], log_from: null } : app.spec, values);
}

export class LayerSteps {
  /** `onread(text)` is called with what there is to say of the cell that is pointed at, null for none. */
  constructor(app, name, onread, onstep = (step) => app.goTo(step)) {
    this.app = app;
    this.heatmap = new Heatmap(`layer by step picture of ${name}`);
    this.element = this.heatmap.element;
    this.onread = onread;
    this.onstep = onstep;
    this.over = null;
    const { element } = this;
    element.classList.add("layer-steps");
    element.addEventListener("mousemove", (event) => this._hover(this.heatmap.hit(event)));
    element.addEventListener("mouseleave", () => this._hover(null));
    element.addEventListener("click", (event) => this._click(this.heatmap.hit(event)));
    this.cursor = new CellCursor(this.heatmap, {
      label: `map of layers and steps of ${name}`, voice: app.voice,
      onmove: (cell) => {
        this._hover(cell);
        return this._told().join(" ");
      },
      onpick: (cell) => this._click(cell),
    });
  }

  paint(series, picture, colours, { cursor, title }) {
    const { picked } = this.app.state;
    Object.assign(this, { series, picture });
    const layers = picked.map(({ layer, head }, at) => ({ row: layer, col: null, head, colour: pickColour(at) }));
    this.heatmap.draw({
      values: picture.values, rows: picture.layers, cols: picture.samples, scale: colours, steps: series.steps, cursor, title,
      marks: layers.filter(({ head }) => head === null),
    });
    paintSigns(this.heatmap, picture.values, colours);
    this.cursor.place();
    if (this.over) this.onread(this._told());
  }

  _click(cell) {
    if (!cell) return;
    if (cell.col === null) this.app.pick(cell.row, null);
    else this.onstep(this.series.steps[cell.col]);
  }

  _hover(cell) {
    this.over = cell;
    this.onread(this._told());
  }

  /** Where the cell is that is pointed at, and its value; empty for none. */
  _told() {
    const { over, picture, series } = this;
    if (!over || over.col === null || !picture || over.row >= picture.layers || over.col >= picture.samples) return [];
    const value = picture.values[over.row * picture.samples + over.col];
    const { state, spec } = this.app;
    return [`layer ${over.row}, step ${series.steps[over.col]}`, withUnit(state.change ? signed(value) : number(value), spec.unit)];
  }
}
