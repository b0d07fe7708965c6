// The TensorBoard around the page. All of it is a convenience: without it the page works by itself.

const PLUGIN = "lightning_geo";

function parentDocument() {
  try {
    return window.parent === window ? null : window.parent.document;
  } catch {
    return null; // embedded in a page of another origin, as in a notebook
  }
}

/** Follows TensorBoard's dark mode, or the system's where TensorBoard cannot be asked. */
export function followTheme(onchange) {
  const body = parentDocument()?.body;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const dark = body ? body.classList.contains("dark-mode") : system.matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    onchange();
  };
  if (body) new MutationObserver(apply).observe(body, { attributes: true, attributeFilter: ["class"] });
  else system.addEventListener("change", apply);
  apply();
}

/** Calls back when TensorBoard reloads its data: by its button, or by its own timer. */
export function onReload(callback) {
  if (window.parent === window) return;
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.isReply) return;
    if (message.type === "experimental.DataReloaded") callback();
    port1.postMessage(JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }));
  };
  window.parent.postMessage("experimental.bootstrap", "*", [port2]);
}

/** The view in TensorBoard's own address, `#lightning_geo&p.lightning_geo.view=…`, or in the frame's. */
export function readView() {
  const own = /[#&]view=([^&]*)/.exec(window.location.hash)?.[1];
  let shared = null;
  try {
    shared = new RegExp(`[#&]p\\.${PLUGIN}\\.view=([^&]*)`).exec(window.parent.location.hash)?.[1];
  } catch {
    // of another origin
  }
  try {
    return decodeURIComponent(shared ?? own ?? "");
  } catch {
    return "";
  }
}

/** The address at which TensorBoard shows a view. */
export function linkTo(view) {
  const { origin, pathname, search } = parentDocument() ? window.parent.location : window.location;
  return `${origin}${pathname}${search}#${PLUGIN}&p.${PLUGIN}.view=${encodeURIComponent(view)}`;
}

/** Keeps the view in the address, so that reloading the page leads back to it. */
export function writeView(view) {
  try {
    if (parentDocument() && window.parent.location.hash.startsWith(`#${PLUGIN}`)) {
      window.parent.history.replaceState(window.parent.history.state, "", linkTo(view));
    }
  } catch {
    // of another origin, or the browser has had enough of it: only the address stays behind
  }
}
