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

function fileName({ state, views }, ending) {
  return `${[state.view, views[state.view].timeless ? "" : state.metric, state.run].filter(Boolean).join("-").replaceAll(/[^\w.-]+/g, "_").slice(0, 120)}.${ending}`;
}

export function exportCsv(app) {
  const rows = app.views[app.state.view].table();
  save(new Blob([csv(rows)], { type: "text/csv" }), fileName(app, "csv"));
}

/** Whether a box is hidden, or scrolled out of what is around its element. */
function isOut(box, element) {
  if (!box.width) return true;
  const around = element.closest(".scroll")?.getBoundingClientRect();
  return around && (box.top < around.top - 1 || box.bottom > around.bottom + 1 || box.left < around.left - 1 || box.right > around.right + 1);
}

/** The words of an element as they stand on screen, the swatches of its legends, and bars. */
function* words(element) {
  for (const swatch of element.querySelectorAll("i, .bar, .swatch")) {
    const box = swatch.getBoundingClientRect();
    if (!isOut(box, swatch)) yield { swatch, box };
  }
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest("select, .control, [hidden]")) continue;
    for (const match of node.data.matchAll(/\S+/g)) {
      range.setStart(node, match.index);
      range.setEnd(node, match.index + match[0].length);
      const box = range.getBoundingClientRect();
      if (!isOut(box, node.parentElement)) yield { text: match[0], box, parent: node.parentElement };
    }
  }
}

function write(context, element, x, y) {
  context.textBaseline = "middle";
  for (const { text, swatch, box, parent } of words(element)) {
    const style = getComputedStyle(swatch ?? parent);
    const [left, top] = [box.left - x, box.top - y];
    if (text) {
      context.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
      context.fillStyle = style.color;
      context.fillText(text, left, top + box.height / 2);
    } else if (box.height > 4) {
      context.fillStyle = style.backgroundColor;
      context.fillRect(left, top, box.width, box.height);
    } else {
      context.strokeStyle = style.borderTopColor;
      context.lineWidth = 2;
      context.setLineDash(style.borderTopStyle === "dashed" ? [4, 3] : []);
      context.strokeRect(left, top + 1, box.width, 0);
    }
  }
}

/** The view as it stands on screen, under a line that says what it shows. */
export function exportPng(app) {
  const { element } = app.views[app.state.view];
  const canvases = app.views[app.state.view].canvases().filter((canvas) => canvas.width && canvas.isConnected && !canvas.closest("[hidden]"));
  const boxes = canvases.map((canvas) => canvas.getBoundingClientRect());
  boxes.push(...[element, ...element.children].filter((part) => !part.hidden).map((part) => part.getBoundingClientRect()).filter(({ width }) => width));
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
  const caption = app.views[app.state.view].caption?.() ?? `${app.state.metric}, ${runs}, step ${app.step()}`;
  context.fillText(caption, MARGIN, MARGIN + 12);
  canvases.forEach((canvas, i) => {
    const box = boxes[i];
    context.drawImage(canvas, box.left - left + MARGIN, box.top - top + MARGIN + 24, box.width, box.height);
  });
  write(context, element, left - MARGIN, top - MARGIN - 24);
  page.toBlob((blob) => save(blob, fileName(app, "png")), "image/png");
}
