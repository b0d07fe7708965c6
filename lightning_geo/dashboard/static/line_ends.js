// Names at the ends of lines, and which line is pointed at. No DOM: these run under `node --test`.

import { nearest } from "./series.js";

/**
 * Where the names of lines stand that end at `ends`, `{y}` each: `{index, y}` from top to bottom, at least `apart` from
 * each other, between `top` and `bottom`, as near to their lines as that lets them.
 *
 * Of more than there is room for, the outermost are there, and others at equal distances in their order.
 */
export function placed(ends, top, bottom, apart) {
  const order = ends.map(({ y }, index) => ({ index, y })).filter(({ y }) => Number.isFinite(y)).sort((a, b) => a.y - b.y);
  const room = Math.max(1, Math.floor((bottom - top) / apart) + 1);
  const kept = order.length <= room ? order : Array.from({ length: room }, (_, i) => order[room > 1 ? Math.round((i * (order.length - 1)) / (room - 1)) : 0]);
  const start = ({ sum, count }) => Math.max(top, Math.min(bottom - (count - 1) * apart, sum / count - ((count - 1) / 2) * apart));
  const end = (group) => start(group) + group.count * apart;
  // groups of names that touch share a middle: where two groups meet they become one
  const groups = [];
  for (const { y } of kept) {
    groups.push({ sum: y, count: 1 });
    while (groups.length > 1 && start(groups[groups.length - 1]) < end(groups[groups.length - 2])) {
      const { sum, count } = groups.pop();
      const before = groups[groups.length - 1];
      groups[groups.length - 1] = { sum: before.sum + sum, count: before.count + count };
    }
  }
  const ys = groups.flatMap((group) => Array.from({ length: group.count }, (_, i) => start(group) + i * apart));
  return kept.map(({ index }, i) => ({ index, y: ys[i] }));
}

/** The line whose value at `x` is nearest to `y`: `{index, sample}`, null if none has a value there. */
export function closest(lines, x, y) {
  let found = null;
  lines.forEach(({ xs, ys }, index) => {
    const sample = nearest(xs, x);
    const away = Math.abs(ys[sample] - y);
    if (Number.isFinite(away) && !(away >= found?.away)) found = { index, sample, away };
  });
  return found && { index: found.index, sample: found.sample };
}
