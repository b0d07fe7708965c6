// Elements made of data. Strings become text, never markup: names of runs and tags come from users.

/** Makes an element. `on…` attributes are listeners, `dataset` and `style` objects, null leaves one out. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset" || name === "style") Object.assign(element[name], value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Replaces what an element holds; the focus stays on what has the same `data-key`. */
export function refill(element, ...children) {
  const active = document.activeElement;
  const key = element.contains(active) ? active.dataset.key : undefined;
  element.replaceChildren(...children);
  if (key !== undefined) [...element.querySelectorAll("[data-key]")].find((found) => found.dataset.key === key)?.focus();
}

/** Replaces the options of a select, `[value, text, title]` each, keeping the elements if they are the same already. */
export function setOptions(select, options, chosen) {
  const same =
    select.options.length === options.length &&
    options.every(([value, text], i) => select.options[i].value === value && select.options[i].text === text);
  if (!same) select.replaceChildren(...options.map(([value, text, title = text]) => el("option", { value, title }, text)));
  select.value = chosen;
  select.title = select.selectedOptions[0]?.title ?? "";
}

/** A row of buttons of which one is pressed: `[value, text, hint]` each. */
export function choice(label, options, onpick) {
  const buttons = options.map(([value, text, title]) =>
    el("button", { type: "button", title, dataset: { value, key: value }, onclick: () => onpick(value) }, text),
  );
  const element = el("div", { class: "choice", role: "group", "aria-label": label }, ...buttons);
  const set = (chosen) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === chosen));
  };
  return { element, set };
}
