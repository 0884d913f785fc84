// The geometry of the split editor, without a page: how wide a layer is, where a border may go, which layer a hand means.

export const LEAST_BAR = 4; // pixels: what takes no time can still be seen, and a border put beside it

export const THIN_BAR = 6; // pixels: an edge would hide its colours

const SPLIT_ROWS = 5; // F, I, W, weights with gradients, activations

// The five columns of float32 as the kernel packs them, one number a layer.
export function splitColumns(view, layers) {
  const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + 4 * SPLIT_ROWS * layers);
  const all = new Float32Array(bytes); // sliced, as a view may begin anywhere and an array of floats may not
  return Array.from({ length: SPLIT_ROWS }, (_, n) => all.subarray(n * layers, (n + 1) * layers));
}

// The parts of a bar from the top, one column each.
export function splitParts(columns, by) {
  return by === "bytes" ? columns.slice(3) : columns.slice(0, 3);
}

export function splitSizes(parts) {
  return Array.from(parts[0], (_, layer) => parts.reduce((sum, part) => sum + part[layer], 0));
}

// Where each bar begins, and the last one ends, in [0, 1] of `room` pixels. Proportional to the sizes, but none narrower
// than `least` pixels; where even that is too much, all get half of an equal share, and the rest goes by size.
export function splitEdges(sizes, room, least = LEAST_BAR) {
  const count = sizes.length;
  const floor = Math.min(least / Math.max(room, 1), 0.5 / count);
  const narrow = new Array(count).fill(false);
  let rest = sizes.reduce((sum, size) => sum + size, 0);
  let share = 1;
  for (let changed = true; changed && rest > 0; ) {
    changed = false;
    const [all, size] = [share, rest];
    for (let n = 0; n < count; n++) {
      if (narrow[n] || (sizes[n] / size) * all >= floor) continue;
      narrow[n] = changed = true;
      share -= floor;
      rest -= sizes[n];
    }
  }
  const edges = [0];
  for (let n = 0; n < count; n++) {
    const width = rest > 0 ? (narrow[n] ? floor : (sizes[n] / rest) * share) : 1 / count;
    edges.push(edges[n] + width);
  }
  const last = edges[count]; // 1, but for rounding
  return edges.map((edge) => edge / last);
}

// The first and the last layer that the stage after a border may begin with: no stage is left without layers.
export function splitLimits(cuts, border, layers) {
  return [(border > 0 ? cuts[border - 1] : 0) + 1, (border + 1 < cuts.length ? cuts[border + 1] : layers) - 1];
}

// Which layer a border dragged to `at` in [0, 1] snaps to: the nearest edge that it may stand at.
export function splitLayerAt(edges, at, limits) {
  let [low, high] = limits;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (at > (edges[middle] + edges[middle + 1]) / 2) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Which layer lies under `at` in [0, 1].
export function splitLayerUnder(edges, at) {
  let low = 0;
  let high = edges.length - 2;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (at >= edges[middle + 1]) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Where a key puts a border; null for a key that means nothing here. Right and up are later layers, as for any slider.
export function splitKey(key, now, limits) {
  const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5, Home: -Infinity, End: Infinity };
  if (!Object.hasOwn(steps, key)) return null;
  return Math.min(Math.max(now + steps[key], limits[0]), limits[1]);
}

// The stages of some cuts: [first layer, behind the last one].
export function splitStages(cuts, layers) {
  const starts = [0, ...cuts];
  return starts.map((start, n) => [start, n + 1 < starts.length ? starts[n + 1] : layers]);
}

// What waits to be sent. A later position of the same hand replaces an earlier one: the last wish wins.
export function splitQueued(queue, wish) {
  const last = queue[queue.length - 1];
  const same = last && last.what === "move" && wish.what === "move" && last.hand === wish.hand;
  return same ? [...queue.slice(0, -1), wish] : [...queue, wish];
}

// A layer's name in so many letters: leading parts go first, then what does not tell layers apart; "" where nothing does.
export function splitName(name, letters) {
  if (name.length <= letters) return name;
  const parts = name.split(".");
  for (let n = 1; n < parts.length; n++) {
    const tail = parts.slice(n).join(".");
    if (tail.length + 1 <= letters) return `\u2026${tail}`;
  }
  const last = parts[parts.length - 1];
  const [number] = last.match(/\d+$/) || [""];
  if (number) return number.length + 1 <= letters ? `\u2026${number}` : number.length <= letters ? number : "";
  return letters >= 3 ? `${last.slice(0, letters - 1)}\u2026` : "";
}

// Which bars stand out too little to be seen without a tick: few among many that can.
export function splitTicks(edges, room) {
  const thin = edges.slice(1).map((edge, n) => n).filter((n) => (edges[n + 1] - edges[n]) * room < THIN_BAR);
  return thin.length * 2 <= edges.length ? thin : [];
}

// How much fits in a stage's band: lines with words, short lines, a number with the time on its side, nothing.
export function splitRoom(width) {
  if (width >= 84) return "wide";
  if (width >= 50) return "lines";
  if (width >= 15) return "upright";
  if (width >= 11) return "thin";
  return "none";
}
