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

/** Calls `reloaded` when TensorBoard reloads its data, by its button or its own timer; `runs` with its runs, in its order. */
export function listen({ reloaded, runs }) {
  if (window.parent === window) return;
  const { port1, port2 } = new MessageChannel();
  const send = (message) => port1.postMessage(JSON.stringify({ payload: null, error: null, isReply: false, ...message }));
  port1.onmessage = ({ data }) => {
    const { type, id, payload, isReply } = JSON.parse(data);
    if (["experimental.GetRuns", "experimental.RunsChanged"].includes(type) && Array.isArray(payload)) runs(payload);
    if (isReply) return;
    if (type === "experimental.DataReloaded") reloaded();
    send({ type, id, isReply: true });
  };
  window.parent.postMessage("experimental.bootstrap", "*", [port2]);
  send({ type: "experimental.GetRuns", id: 0 });
}

/** What of TensorBoard's list of runs stands in its address: the `filter` of their names, and the pattern that groups them. */
export function runList() {
  const query = new URLSearchParams(parentDocument() ? window.parent.location.search : "");
  const group = query.get("runColorGroup") ?? "";
  return { filter: query.get("runFilter") ?? "", pattern: group.startsWith("regex:") ? group.slice(6) : null };
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
