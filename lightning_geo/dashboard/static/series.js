// Arithmetic on samples of a metric. No DOM: these run under `node --test`.
//
// A series is { steps, layers, heads, values, total, … }: values[(sample * layers + layer) * heads + head], NaN
// where the metric is not defined. A frame is one sample's [layers * heads].

/** Reads what the route `data` sends: length of the header, header, float32 values. */
export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const [, layers, heads] = header.shape;
  const { steps, first, total, stamp } = header;
  // the platform's order is little-endian wherever a browser runs
  return { steps, layers, heads, values: new Float32Array(buffer, 4 + length), first, total, stamp };
}

/** A series and the samples that follow on it; null if they do not fit, as after a change of the model. */
export function continued(series, more) {
  if (!more.steps.length) return series;
  if (more.layers !== series.layers || more.heads !== series.heads) return null;
  const values = new Float32Array(series.values.length + more.values.length);
  values.set(series.values);
  values.set(more.values, series.values.length);
  return { ...more, steps: [...series.steps, ...more.steps], values, first: 0 };
}

/** The values of one sample, not copied. */
export function frame(series, sample) {
  const size = series.layers * series.heads;
  return series.values.subarray(sample * size, (sample + 1) * size);
}

/** What a frame has become since another one, cell by cell; absent where either is. */
export function difference(now, before) {
  const result = new Float32Array(now.length);
  for (let i = 0; i < now.length; i++) result[i] = now[i] - before[i];
  return result;
}

/** B − A over the layers and heads of both, absent where only one of them has the cell. */
export function across(a, frameA, b, frameB) {
  const layers = Math.max(a.layers, b.layers);
  const heads = Math.max(a.heads, b.heads);
  const values = new Float32Array(layers * heads).fill(NaN);
  for (let layer = 0; layer < Math.min(a.layers, b.layers); layer++) {
    for (let head = 0; head < Math.min(a.heads, b.heads); head++) {
      values[layer * heads + head] = frameB[layer * b.heads + head] - frameA[layer * a.heads + head];
    }
  }
  return { layers, heads, values };
}

/** The cells with the largest absolute values, largest first. */
export function largest(values, heads, count) {
  const cells = [];
  for (let i = 0; i < values.length; i++) if (Number.isFinite(values[i])) cells.push(i);
  cells.sort((i, j) => Math.abs(values[j]) - Math.abs(values[i]) || i - j);
  return cells.slice(0, count).map((i) => ({ layer: Math.floor(i / heads), head: i % heads, value: values[i] }));
}

/** Lowest and highest finite value, or null where there is none. */
export function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value < low && value > -Infinity) low = value;
    if (value > high && value < Infinity) high = value;
  }
  return low <= high ? [low, high] : null;
}

/** Index of the sample nearest to a step, the earlier of two; -1 where there is none. */
export function nearest(steps, step) {
  if (!steps.length) return -1;
  let low = 0;
  let high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - steps[low - 1] <= steps[low] - step ? low - 1 : low;
}

/** Where in B a step of A lies: at the same step, or at the same fraction of what was sampled. */
export function aligned(stepsA, stepsB, step, by) {
  if (!stepsA.length || !stepsB.length) return -1;
  if (by === "step") return nearest(stepsB, step);
  const [firstA, lastA] = [stepsA[0], stepsA[stepsA.length - 1]];
  const [firstB, lastB] = [stepsB[0], stepsB[stepsB.length - 1]];
  const fraction = lastA > firstA ? (step - firstA) / (lastA - firstA) : 1;
  return nearest(stepsB, firstB + fraction * (lastB - firstB));
}

/** One number of a layer: its heads' mean, lowest, highest, or highest − lowest (`spread`); NaN if none is finite. */
function merged(values, start, count, by) {
  let sum = 0;
  let top = -Infinity;
  let bottom = Infinity;
  let given = 0;
  for (let i = start; i < start + count; i++) {
    if (!Number.isFinite(values[i])) continue;
    sum += values[i];
    top = Math.max(top, values[i]);
    bottom = Math.min(bottom, values[i]);
    given++;
  }
  if (!given) return NaN;
  return { max: top, min: bottom, spread: top - bottom }[by] ?? sum / given;
}

/** The values of a head over samples; with `head` null those of its layer, with `layer` null the model's. */
export function trace(series, layer, head, by = "mean") {
  const { layers, heads, values } = series;
  const result = new Float64Array(series.steps.length).fill(NaN);
  if (layer !== null && (layer >= layers || (head !== null && head >= heads))) return result;
  for (let sample = 0; sample < result.length; sample++) {
    const base = sample * layers * heads;
    if (layer === null) result[sample] = merged(values, base, layers * heads, by);
    else if (head === null) result[sample] = merged(values, base + layer * heads, heads, by);
    else result[sample] = values[base + layer * heads + head];
  }
  return result;
}

/** Layers down, samples to the right: how depth organises over training. */
export function evolution(series, by = "mean") {
  const count = series.steps.length;
  const values = new Float32Array(series.layers * count);
  for (let layer = 0; layer < series.layers; layer++) values.set(trace(series, layer, null, by), layer * count);
  return { layers: series.layers, samples: count, values };
}
