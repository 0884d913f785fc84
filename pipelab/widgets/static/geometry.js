// Where everything of a timeline lies, and what lies under a point: pure functions, without a page. Times are seconds,
// lengths CSS pixels, a box is an index into the columns, which are sorted by row and by start within a row.

const ARRAYS = { f8: Float64Array, f4: Float32Array, i4: Int32Array, u1: Uint8Array };

// The columns of a message. `first[r]` to `first[r + 1]` are the boxes of row r; `reach[i]` is the latest end in its
// row up to box i, which is what a search for the first visible box needs where boxes overlap.
export function loadColumns(view, meta) {
  // The buffer of a message begins anywhere; typed arrays may not, so the bytes are copied once.
  const bytes = view ? view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength) : new ArrayBuffer(0);
  const data = {};
  for (const [name, [type, offset, length]] of Object.entries(meta.columns || {})) {
    data[name] = new ARRAYS[type](bytes, offset, length);
  }
  data.count = meta.count || 0;
  const rows = (meta.rows || []).length;
  data.first = firstOfRows(data.row || new Int32Array(0), rows);
  data.reach = runningEnd(data);
  data.shortest = shortestOf(data);
  data.boxOf = null;
  return data;
}

function firstOfRows(row, rows) {
  const first = new Int32Array(rows + 1);
  for (let i = 0; i < row.length; i++) first[row[i] + 1]++;
  for (let r = 0; r < rows; r++) first[r + 1] += first[r];
  return first;
}

function runningEnd(data) {
  const reach = new Float64Array(data.count);
  for (let r = 0; r + 1 < data.first.length; r++) {
    let latest = -Infinity;
    for (let i = data.first[r]; i < data.first[r + 1]; i++) {
      if (data.end[i] > latest) latest = data.end[i];
      reach[i] = latest;
    }
  }
  return reach;
}

// What the shortest box takes that takes any time at all; Infinity where there is none.
function shortestOf(data) {
  let shortest = Infinity;
  for (let i = 0; i < data.count; i++) {
    const seconds = data.end[i] - data.start[i];
    if (seconds > 0 && seconds < shortest) shortest = seconds;
  }
  return shortest;
}

// The first box that shows a row of the trace, or -1.
export function boxOfRow(data, traceRow) {
  if (!data.boxOf) {
    let most = -1;
    for (let i = 0; i < data.count; i++) if (data.of[i] > most) most = data.of[i];
    data.boxOf = new Int32Array(most + 1).fill(-1);
    for (let i = data.count - 1; i >= 0; i--) data.boxOf[data.of[i]] = i;
  }
  return traceRow >= 0 && traceRow < data.boxOf.length ? data.boxOf[traceRow] : -1;
}

// ---- where things go

const LEAST_ROW = 3;
const TALLEST_ROW = 28;
const ROWS_TOGETHER = 460; // many ranks get lower rows rather than an endless picture
const AXIS = 34; // tick labels and the unit
const STRIP_TITLE = 20;

export function layoutOf({ rows, strips, width, left, right, height }) {
  const stripsTitle = strips ? STRIP_TITLE : 0;
  let row = clamp(Math.floor(ROWS_TOGETHER / Math.max(rows, 1)), LEAST_ROW, TALLEST_ROW);
  let strip = strips ? clamp(Math.floor(ROWS_TOGETHER / strips), 8, TALLEST_ROW) : 0;
  if (height) {
    const room = Math.max(height - AXIS - stripsTitle - 8, rows + strips);
    const share = strips ? room / (rows + strips) : room / Math.max(rows, 1);
    row = Math.max(1, share);
    strip = strips ? Math.max(1, share) : 0;
  }
  const top = 6; // room for a frame or a path around the first row
  const stripsTop = top + rows * row + stripsTitle;
  const axisTop = strips ? stripsTop + strips * strip + 2 : top + rows * row + 2;
  return {
    rows, row, top, left, right, strips, strip, stripsTop, axisTop,
    width, plot: Math.max(width - left - right, 10), height: axisTop + AXIS,
  };
}

// Every n-th row is labelled, n a power of two, where rows are too low for all labels.
export function labelEvery(rows, rowHeight, lineHeight) {
  let every = 1;
  while (every * rowHeight < lineHeight && every < rows) every *= 2;
  return every;
}

export function clamp(value, least, most) {
  return Math.max(least, Math.min(most, value));
}

export function timeToX(time, shown, area) {
  return area.left + ((time - shown[0]) / (shown[1] - shown[0])) * area.plot;
}

export function xToTime(x, shown, area) {
  return shown[0] + ((x - area.left) / area.plot) * (shown[1] - shown[0]);
}

export function rowAt(y, area) {
  const row = Math.floor((y - area.top) / area.row);
  return row >= 0 && row < area.rows ? row : -1;
}

// The strip of memory under a point, or -1.
export function stripAt(y, area) {
  const strip = Math.floor((y - area.stripsTop) / area.strip);
  return area.strips && strip >= 0 && strip < area.strips ? strip : -1;
}

// Where words `high` pixels high go that explain some rows: beside the row under the pointer and its neighbours, on the
// side that covers fewer of the others; under the picture where either side covers some.
export function tipTop(area, y, row, rows, high) {
  const below = Math.max(y + 18, area.top + (row + 2) * area.row + 2);
  const above = Math.min(y - 8, area.top + (row - 1) * area.row - 2) - high;
  const places = [below, above].filter((top) => top >= 0 && top + high <= area.height);
  const covered = (top) => rows.filter((r) => top < area.top + (r + 1) * area.row && top + high > area.top + r * area.row).length;
  return [...places, area.height + 2].reduce((best, top) => (covered(top) < covered(best) ? top : best));
}

// ---- what part of the axis is shown

// The closest that one may look: a quarter of the shortest box, or a millionth of all.
export function leastSpan(data, stop) {
  return Math.max(stop * 1e-6, isFinite(data.shortest) ? 0.25 * data.shortest : 0);
}

// (0, 0) stands for all; what does not fit is moved, not refused: views of other traces may be linked to this one.
export function shownOf(wished, stop, least) {
  const [begin, end] = wished || [0, 0];
  if (!(end > begin) || !isFinite(end - begin)) return [0, stop];
  const span = clamp(end - begin, Math.min(least, stop), stop);
  const from = clamp(begin, 0, stop - span);
  return [from, from + span];
}

export function spanOf(shown, stop) {
  return shown[0] <= 0 && shown[1] >= stop ? [0, 0] : [shown[0], shown[1]];
}

export function zoomed(shown, factor, at, stop, least) {
  const span = clamp((shown[1] - shown[0]) * factor, Math.min(least, stop), stop);
  const share = (at - shown[0]) / (shown[1] - shown[0]);
  const from = clamp(at - share * span, 0, stop - span);
  return [from, from + span];
}

export function panned(shown, by, stop) {
  const span = shown[1] - shown[0];
  const from = clamp(shown[0] + by, 0, Math.max(0, stop - span));
  return [from, from + span];
}

// Moved no further than needed to have [start, end] in it, with a margin of a tenth.
export function revealed(shown, start, end, stop) {
  const span = shown[1] - shown[0];
  if (start >= shown[0] && end <= shown[1]) return shown;
  if (start < shown[0] || end - start > span) return panned(shown, start - 0.1 * span - shown[0], stop);
  return panned(shown, end + 0.1 * span - shown[1], stop);
}

// ---- what lies where

// The first box of a row that ends after `time`: where drawing begins.
export function firstVisible(data, row, time) {
  let low = data.first[row];
  let high = data.first[row + 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (data.reach[middle] <= time) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The first box of a row that starts at `time` or later.
function firstFrom(data, row, time) {
  let low = data.first[row];
  let high = data.first[row + 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (data.start[middle] < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The box under a point, or -1. `offset` is the distance from the row's centre in rows; `slack` seconds make a box that
// is thinner than a pixel still something that a hand can meet, `margin` rows do so for the gap between two rows.
export function hitBox(data, row, time, offset, slack = 0, margin = 0) {
  if (row < 0) return -1;
  let nearest = -1;
  let distance = Infinity;
  for (let i = firstVisible(data, row, time - slack); i < data.first[row + 1] && data.start[i] <= time + slack; i++) {
    const away = Math.max(0, data.start[i] - time, time - data.end[i]);
    if (away > slack || offset < data.top[i] - margin || offset > data.bottom[i] + margin) continue;
    // Neighbours share an instant: the one that starts there is meant.
    if (away < distance || (away === distance && away === 0 && data.end[nearest] <= time)) {
      nearest = i;
      distance = away;
    }
  }
  return nearest;
}

// The idle time around `time` in a row: from the end of what ran before to the start of what runs next.
export function gapAt(data, row, time, makespan) {
  const next = firstFrom(data, row, time);
  const from = next > data.first[row] ? data.reach[next - 1] : 0;
  const to = next < data.first[row + 1] ? data.start[next] : makespan;
  return [Math.min(from, time), Math.max(to, time)];
}

// The next or previous box of a row that shows another row of the trace; the box itself at the row's end.
export function alongRow(data, box, step) {
  const row = data.row[box];
  for (let i = box + step; i >= data.first[row] && i < data.first[row + 1]; i += step) {
    if (data.of[i] !== data.of[box]) return i;
  }
  return box;
}

// The box in the nearest row above or below that has any, whose middle is closest in time.
export function acrossRows(data, box, step) {
  const time = (data.start[box] + data.end[box]) / 2;
  for (let row = data.row[box] + step; row >= 0 && row + 1 < data.first.length; row += step) {
    const near = nearestInRow(data, row, time);
    if (near >= 0) return near;
  }
  return box;
}

export function nearestInRow(data, row, time) {
  const begin = data.first[row];
  const stop = data.first[row + 1];
  if (begin === stop) return -1;
  const next = firstFrom(data, row, time);
  const candidates = [next - 1, next].filter((i) => i >= begin && i < stop);
  const away = (i) => Math.max(0, data.start[i] - time, time - data.end[i]);
  return candidates.reduce((best, i) => (away(i) < away(best) ? i : best));
}

// ---- level of detail

// Whether the visible boxes of a row are too narrow, on average, to be drawn one by one.
export function isDense(boxes, busySeconds, perSecond, narrow = 3) {
  return boxes > 8 && busySeconds * perSecond < narrow * boxes;
}

// How much of each of `width` pixels every paint covers, added to `into` (paints x width): no box is dropped, and the
// coverage of a row sums to its busy time at any width. The same as plots/coverage.py.
export function addCoverage(into, data, from, to, shown, width, height) {
  const perSecond = width / (shown[1] - shown[0]);
  for (let i = from; i < to; i++) {
    const a = clamp((data.start[i] - shown[0]) * perSecond, 0, width);
    const b = clamp((data.end[i] - shown[0]) * perSecond, 0, width);
    if (b <= a) continue;
    const share = (data.bottom[i] - data.top[i]) / height;
    const base = data.paint[i] * width;
    const firstPixel = Math.floor(a);
    const lastPixel = Math.min(Math.floor(b), width - 1);
    if (firstPixel === lastPixel) {
      into[base + firstPixel] += (b - a) * share;
      continue;
    }
    into[base + firstPixel] += (firstPixel + 1 - a) * share;
    for (let x = firstPixel + 1; x < lastPixel; x++) into[base + x] += share;
    into[base + lastPixel] += (b - lastPixel) * share;
  }
}

// What a rank holds at a moment: the last step that is not later.
export function heldAt(data, rank, time) {
  let low = data.memory_first[rank];
  let high = data.memory_first[rank + 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (data.memory_time[middle] <= time) low = middle;
    else high = middle;
  }
  return data.memory_value[low];
}

// A step function for drawing: for each pixel the most that it reaches there, so that no peak is lost.
export function stepEnvelope(time, value, from, to, shown, width) {
  const most = new Float64Array(width);
  if (to <= from) return most;
  const perPixel = (shown[1] - shown[0]) / width;
  let k = from;
  while (k + 1 < to && time[k + 1] <= shown[0]) k++;
  for (let x = 0; x < width; x++) {
    const end = shown[0] + (x + 1) * perPixel;
    let highest = value[k];
    while (k + 1 < to && time[k + 1] < end) {
      k++;
      if (value[k] > highest) highest = value[k];
    }
    most[x] = highest;
  }
  return most;
}

// ---- the time axis

// The unit in which times up to so many seconds read well: its length in seconds, and its name. As plots.wording has it.
export function timeUnit(seconds) {
  const units = [[1, "s"], [1e-3, "ms"], [1e-6, "us"], [1e-9, "ns"]];
  return units.find(([length]) => seconds >= length) || units[seconds > 0 ? 3 : 0];
}

// Round times to label, about `room` of them, and how many decimals they need in a unit of `unit` seconds.
export function niceTicks(shown, room, unit) {
  const rough = (shown[1] - shown[0]) / unit / Math.max(room, 1);
  const power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = [1, 2, 5, 10].map((n) => n * power).find((s) => s >= rough * 0.999) || power;
  const decimals = clamp(Math.ceil(-Math.log10(step) - 1e-9), 0, 12);
  const ticks = [];
  for (let n = Math.ceil(shown[0] / unit / step - 1e-9); n * step * unit <= shown[1] * (1 + 1e-12) && ticks.length < 200; n++) {
    ticks.push({ time: n * step * unit, text: (n * step).toFixed(decimals) });
  }
  return ticks;
}

// ---- words

// Seconds as pipelab prints them: three significant digits and a fitting unit.
export function asSeconds(value) {
  const units = [[1, "s"], [1e3, "ms"], [1e6, "us"]];
  const [factor, unit] = units.find(([f, u]) => Math.abs(value) * f >= 0.9995 || u === "us");
  if (value === 0 || !isFinite(value)) return `${value} s`;
  const scaled = value * factor;
  if (Math.abs(scaled) >= 999.5) return `${Math.round(scaled).toLocaleString("en-US")} ${unit}`;
  return `${Number(scaled.toPrecision(3))} ${unit}`;
}

// Bytes as pipelab prints them: three significant digits and a binary unit.
export function asBytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const fits = units.findIndex((_, power) => Math.abs(value) < 999.5 * 1024 ** power);
  const power = fits < 0 ? units.length - 1 : fits;
  return `${threeDigits(value / 1024 ** power)} ${units[power]}`;
}

// As Python's ".3g" does, also for what is beyond the largest unit.
function threeDigits(value) {
  if (Math.abs(value) < 999.5) return String(Number(value.toPrecision(3)));
  const [digits, power] = value.toExponential(2).split("e+");
  return `${Number(digits)}e+${power.padStart(2, "0")}`;
}

// A name given by a person, as one line that is not endless: control characters replaced, its middle left out.
export function plainText(name, limit = 60) {
  // eslint-disable-next-line no-control-regex
  const line = String(name).split(/\s+/).filter(Boolean).join(" ").replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, "\ufffd");
  const letters = Array.from(line);
  if (letters.length <= limit) return line;
  const half = Math.floor((limit - 1) / 2);
  return `${letters.slice(0, limit - 1 - half).join("")}\u2026${letters.slice(letters.length - half).join("")}`;
}

export function nameOf(data, meta, box) {
  const action = `${data.stage[box]}${meta.kinds[data.kind[box]]}${data.number[box]}`;
  return meta.lanes[data.lane[box]].replace("{action}", action).replace("{number}", data.number[box]);
}

// What was predicted of an action's duration: outlines stand in the order of the trace's rows, which its actions begin.
function predictedOf(data, box) {
  const row = data.of[box];
  if (!data.outline_start || data.lane[box] !== 0 || row >= data.outline_start.length) return "";
  return `, predicted ${asSeconds(data.outline_end[row] - data.outline_start[row])}`;
}

// What a box is, in two lines: its name; where and when.
export function describeBox(data, meta, box) {
  const name = nameOf(data, meta, box);
  const others = [];
  for (const step of [-1, 1]) {
    for (let i = box + step; i >= 0 && i < data.count && data.of[i] === data.of[box]; i += step) others.push(nameOf(data, meta, i));
  }
  const kind = { F: "forward", B: "backward", I: "input's gradient", W: "weights' gradient", U: "update" }[meta.kinds[data.kind[box]]];
  const what = meta.lanes[data.lane[box]] === "{action}" && kind ? `${kind} of micro-batch ${data.number[box]} on stage ${data.stage[box]}` : "";
  const where = `rank ${meta.row_rank[data.row[box]]}`;
  const when = `starts at ${asSeconds(data.start[box])}, takes ${asSeconds(data.end[box] - data.start[box])}${predictedOf(data, box)}`;
  const beside = others.length ? `together with ${others.join(", ")}` : "";
  return [name, [what, where, when, beside].filter(Boolean).join(" \u00b7 ")];
}
