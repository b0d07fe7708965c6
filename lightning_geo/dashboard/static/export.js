// What is shown, as files.

import { csv } from "./format.js";
import { theme } from "./paper.js";

const MARGIN = 12;

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function fileName({ state }, ending) {
  return `${[state.view, state.metric, state.run].join("-").replaceAll(/[^\w.-]+/g, "_").slice(0, 120)}.${ending}`;
}

export function exportCsv(app) {
  const rows = app.views[app.state.view].table();
  save(new Blob([csv(rows)], { type: "text/csv" }), fileName(app, "csv"));
}

/** The view's pictures where they stand on screen, under a line that says what they show. */
export function exportPng(app) {
  const canvases = app.views[app.state.view].canvases().filter((canvas) => canvas.width && canvas.isConnected);
  const boxes = canvases.map((canvas) => canvas.getBoundingClientRect());
  const left = Math.min(...boxes.map((box) => box.left));
  const top = Math.min(...boxes.map((box) => box.top));
  const ratio = window.devicePixelRatio || 1;
  const page = document.createElement("canvas");
  page.width = (Math.max(...boxes.map((box) => box.right)) - left + 2 * MARGIN) * ratio;
  page.height = (Math.max(...boxes.map((box) => box.bottom)) - top + 2 * MARGIN + 24) * ratio;
  const context = page.getContext("2d");
  context.scale(ratio, ratio);
  context.fillStyle = theme().ground;
  context.fillRect(0, 0, page.width, page.height);
  context.fillStyle = theme().ink;
  context.font = "13px system-ui, sans-serif";
  const runs = [app.state.run, app.state.other].filter(Boolean).join(" and ");
  context.fillText(`${app.state.metric}, ${runs}, step ${app.step()}`, MARGIN, MARGIN + 12);
  canvases.forEach((canvas, i) => {
    const box = boxes[i];
    context.drawImage(canvas, box.left - left + MARGIN, box.top - top + MARGIN + 24, box.width, box.height);
  });
  page.toBlob((blob) => save(blob, fileName(app, "png")), "image/png");
}
