// Frames around cells of a map: one line around neighbours, so that a thousand cells can still be seen.

const MARK = "#d93025"; // in both themes: what lies around it is the map, whose colours they share

/** The edges between cells of a mask and all others: `[col, row, col, row]` each, in cells. */
export function edges(mask, rows, cols) {
  const inside = (row, col) => row >= 0 && row < rows && col >= 0 && col < cols && mask[row * cols + col] === 1;
  const found = [];
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      if (!inside(row, col)) continue;
      if (!inside(row - 1, col)) found.push([col, row, col + 1, row]);
      if (!inside(row + 1, col)) found.push([col, row + 1, col + 1, row + 1]);
      if (!inside(row, col - 1)) found.push([col, row, col, row + 1]);
      if (!inside(row, col + 1)) found.push([col + 1, row, col + 1, row + 1]);
    }
  }
  return found;
}

/** Draws them on a map whose cells lie in `box`, on a white edge: the line's colour may be that of a cell. */
export function outline(context, { left, top, wide, tall, rows, cols }, mask) {
  context.beginPath();
  for (const [x0, y0, x1, y1] of edges(mask, rows, cols)) {
    context.moveTo(left + x0 * wide, top + y0 * tall);
    context.lineTo(left + x1 * wide, top + y1 * tall);
  }
  context.lineCap = "square";
  for (const [width, stroke] of [[5, "#ffffff"], [2.5, MARK]]) {
    context.strokeStyle = stroke;
    context.lineWidth = width;
    context.stroke();
  }
  context.lineCap = "butt";
  context.lineWidth = 1;
}

/** Frames one cell, or a whole row (`col` null). */
export function frame(context, box, row, col, colour) {
  const [first, count] = col === null ? [0, box.cols] : [col, 1];
  if (row >= box.rows || first >= box.cols) return;
  // on a lighter edge: the line's colour may be that of the cell
  for (const [width, stroke] of [[5, "#ffffff"], [3, colour]]) {
    context.strokeStyle = stroke;
    context.lineWidth = width;
    context.strokeRect(box.left + first * box.wide + 2, box.top + row * box.tall + 2, count * box.wide - 4, box.tall - 4);
  }
  context.lineWidth = 1;
}
