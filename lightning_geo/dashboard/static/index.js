// What TensorBoard calls to show the tab.

import { App } from "./app.js";
import { el } from "./dom.js";

export async function render() {
  document.documentElement.lang = "en";
  document.title = "Geometry";
  // colours of the pictures come from the style sheets
  await Promise.all(["./dashboard.css", "./runs.css"].map(load));
  new App(document.body);
}

function load(sheet) {
  const style = el("link", { rel: "stylesheet", href: new URL(sheet, import.meta.url).href });
  return new Promise((resolve) => {
    style.onload = style.onerror = resolve;
    document.head.append(style);
  });
}
