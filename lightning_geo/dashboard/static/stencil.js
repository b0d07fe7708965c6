// A picture that is drawn once and put down at every painting, until something in it changes.

import { FONT, theme } from "./paper.js";

export class Stencil {
  constructor(paper) {
    this.paper = paper;
    this.parts = [];
  }

  /** Puts it on the paper. `draw(context)` is called if one of `parts`, the size or the theme is another than before. */
  put(parts, draw, alpha = 1) {
    const { canvas, width, height } = this.paper;
    if (!canvas.width || !canvas.height) return;
    const made = [...parts, canvas.width, canvas.height, theme().ink];
    if (made.length !== this.parts.length || made.some((part, i) => part !== this.parts[i])) this._draw(draw);
    this.parts = made;
    const context = canvas.getContext("2d");
    context.globalAlpha = alpha;
    context.drawImage(this.picture, 0, 0, width, height);
    context.globalAlpha = 1;
  }

  _draw(draw) {
    const { canvas, width } = this.paper;
    this.picture ??= document.createElement("canvas");
    this.picture.width = canvas.width;
    this.picture.height = canvas.height;
    const context = this.picture.getContext("2d");
    const ratio = canvas.width / width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = FONT;
    context.textBaseline = "middle";
    context.lineJoin = "round";
    draw(context);
  }
}
