// Names of runs, short enough for their place and still told apart. No DOM: these run under `node --test`.

import { middle } from "./format.js";

/** Each of some names in at most about so many letters, by name. Names that differ stay different. */
export function shortened(names, most) {
  const short = new Map(names.map((name) => [name, middle(name, most)]));
  for (const alike of grouped(names, short).values()) {
    if (alike.length < 2) continue;
    const [start, end] = shared(alike);
    for (const name of alike) short.set(name, around(name, start, end, most));
  }
  const once = new Set(short.values()).size === short.size;
  return once ? short : new Map(names.map((name) => [name, name])); // too much alike to be cut
}

/** Each of some names without the folders that all of them are in, otherwise as `shortened` does. */
export function apart(names, most) {
  const [start] = names.length > 1 ? shared(names) : [0];
  const folders = start ? names[0].lastIndexOf("/", start - 1) + 1 : 0;
  const short = shortened(names.map((name) => name.slice(folders)), most);
  return new Map(names.map((name) => [name, short.get(name.slice(folders))]));
}

function grouped(names, short) {
  const groups = new Map();
  for (const name of names) groups.set(short.get(name), [...(groups.get(short.get(name)) ?? []), name]);
  return groups;
}

/** How many letters names share at the start and at the end. */
function shared(names) {
  const least = Math.min(...names.map(({ length }) => length));
  let start = 0;
  while (start < least && names.every((name) => name[start] === names[0][start])) start++;
  let end = 0;
  while (end < least - start && names.every((name) => name[name.length - 1 - end] === names[0][names[0].length - 1 - end])) end++;
  return [start, end];
}

/** The part of a name in which it differs, with its end if that is short, and as much before it as there is room for. */
function around(name, start, end, most) {
  const core = name.slice(start, name.length - end);
  const room = Math.max(0, most - core.length - 2);
  const after = end <= 0.6 * room ? end : Math.floor(0.3 * room);
  const before = Math.min(start, room - after);
  const left = start > before ? `…${name.slice(start - before, start)}` : name.slice(0, start);
  const right = end > after ? `${name.slice(name.length - end, name.length - end + after)}…` : name.slice(name.length - end);
  return `${left}${core}${right}`;
}
