// One Tab stop for a group of buttons; the arrow keys move within it.

const AXES = {
  down: { ArrowUp: -1, ArrowDown: 1 },
  across: { ArrowLeft: -1, ArrowRight: 1 },
  both: { ArrowUp: -1, ArrowDown: 1, ArrowLeft: -1, ArrowRight: 1 },
};

let byKeyboard = false; // how the focus came to where it is: after a click the arrow keys go on moving the slider

/** Follows how the focus moves; called once. */
export function watchFocus() {
  document.addEventListener("keydown", ({ key }) => key === "Tab" && (byKeyboard = true), true);
  document.addEventListener("pointerdown", () => (byKeyboard = false), true);
}

/** Makes the buttons in an element one Tab stop, now and as they come and go. `axis` is `down`, `across` or `both`. */
export function roving(element, axis) {
  let last = null;
  const buttons = () => [...element.querySelectorAll("button:not(:disabled)")].filter((button) => !button.closest("[hidden]"));
  const settle = () => {
    const all = buttons();
    const stop = stopOf(all, last);
    for (const button of all) if (button.tabIndex !== (button === stop ? 0 : -1)) button.tabIndex = button === stop ? 0 : -1;
  };
  element.addEventListener("focusin", ({ target }) => {
    last = target;
    settle();
  });
  element.addEventListener("focusout", ({ relatedTarget }) => {
    if (relatedTarget && element.contains(relatedTarget)) return;
    last = null; // next time it is entered where its choice is
    settle();
  });
  element.addEventListener("keydown", (event) => {
    const move = byKeyboard && !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey && AXES[axis][event.key];
    const all = buttons();
    const at = all.indexOf(event.target);
    if (!move || at < 0) return;
    all[next(at, move, all.length)].focus();
    event.preventDefault();
    event.stopPropagation(); // from the slider
  });
  new MutationObserver(settle).observe(element, { childList: true, subtree: true, attributes: true, attributeFilter: ["aria-pressed", "hidden", "disabled"] });
  settle();
  return element;
}

/** The one of a group that Tab stops at: what has the focus, what is chosen, or the first. */
export function stopOf(buttons, last) {
  if (buttons.includes(last)) return last;
  return buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0] ?? null;
}

/** The place after `at` among `count`, around the ends. */
export function next(at, move, count) {
  return (at + move + count) % count;
}
