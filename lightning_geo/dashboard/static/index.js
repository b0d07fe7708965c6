// What TensorBoard calls to show the tab.

import { App } from "./app.js";
import { el } from "./dom.js";

export async function render() {
  document.documentElement.lang = "en";
  document.title = "Geometry";
  const style = el("link", { rel: "stylesheet", href: new URL("./dashboard.css", import.meta.url).href });
  await new Promise((resolve) => {
    style.onload = style.onerror = resolve; // colours of the pictures come from the style sheet
    document.head.append(style);
  });
  new App(document.body);
}
