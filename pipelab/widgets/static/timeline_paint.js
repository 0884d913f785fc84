// Draws the boxes of a timeline: one by one where they are wide enough, else as the average of each pixel.
import { addCoverage, boxOfRow, clamp, firstVisible, isDense, timeToX } from "./geometry.js";
import { paintAxis, paintRowLabels, paintStripLabels, paintStrips } from "./timeline_axis.js";
import { FONT, fainter, rgbOf } from "./timeline_sheet.js";

const FAINT = 0.22; // what is not of the selected micro-batch
const WITHIN = 0.7; // of a row's height: what happened, within the frame of what was predicted
const NARROW = 4; // pixels: narrower boxes have no gap around them, or gaps would wipe them out

// `look` is all that a picture depends on: data, meta, area, shown, theme, number (of the selected micro-batch or -1),
// path (rows of the trace, or null).
export function paintBase(sheet, look) {
  const { area } = look;
  const ctx = sheet.ctx;
  sheet.clear(area.width, area.height);
  paintRowLabels(ctx, look);
  ctx.save();
  ctx.beginPath();
  ctx.rect(area.left, 0, area.plot, area.axisTop + 1);
  ctx.clip();
  paintIdle(sheet, look);
  if (look.data.outline_start) paintOutlines(sheet, look);
  const visible = visibleRows(look);
  paintDenseRows(sheet, look, visible.filter((row) => row.dense));
  const sparse = visible.filter((row) => !row.dense);
  paintBoxes(sheet, look, sparse);
  if (look.number >= 0) paintFollowed(ctx, look, visible);
  paintNumbers(ctx, look, sparse);
  if (area.strips) paintStrips(ctx, look);
  paintOverruns(ctx, look);
  if (look.path) paintPath(ctx, look);
  ctx.restore();
  if (area.strips) paintStripLabels(ctx, look);
  paintAxis(ctx, look);
}

// Which boxes of each row are in sight, and whether they are to be averaged.
function visibleRows({ data, area, shown }) {
  const perSecond = area.plot / (shown[1] - shown[0]);
  const rows = [];
  for (let row = 0; row < area.rows; row++) {
    const from = firstVisible(data, row, shown[0]);
    let to = from;
    let busy = 0;
    const stop = data.first[row + 1];
    while (to < stop && data.start[to] < shown[1]) {
      busy += data.end[to] - data.start[to];
      to++;
    }
    if (to > from) rows.push({ row, from, to, dense: isDense(to - from, busy, perSecond) });
  }
  return rows;
}

// A band's edges: rows too low for a gap between them touch, so that none is lost.
export function bandOf(row, { area, meta }) {
  const half = area.row >= 5 ? meta.half : 0.5;
  const centre = area.top + (row + 0.5) * area.row;
  return [centre - half * area.row, 2 * half * area.row];
}

function paintIdle(sheet, look) {
  const { area, shown, meta, theme } = look;
  const ctx = sheet.ctx;
  const from = clamp(timeToX(0, shown, area), area.left, area.left + area.plot);
  const to = clamp(timeToX(meta.makespan, shown, area), area.left, area.left + area.plot);
  const hatch = sheet.hatching(theme.hatch);
  ctx.beginPath();
  for (let row = 0; row < area.rows; row++) {
    const [y, high] = bandOf(row, look);
    ctx.rect(from, y, to - from, high);
  }
  ctx.fillStyle = theme.idle;
  ctx.fill();
  ctx.fillStyle = hatch;
  ctx.fill();
}

// Every pixel is the average of what happened in it; how idle it was is how much of the hatched band shines through.
function paintDenseRows(sheet, look, rows) {
  if (!rows.length) return;
  const { data, meta, area, shown } = look;
  const width = Math.max(1, Math.round(area.plot * sheet.ratio));
  const strip = sheet.pixels(width, rows.length);
  const colours = faintPaints(look, thinPaints(look)).map(rgbOf); // those of the selected micro-batch are drawn over them
  const covered = new Float32Array(colours.length * width);
  rows.forEach(({ from, to }, line) => {
    covered.fill(0);
    addCoverage(covered, data, from, to, shown, width, 2 * meta.half);
    mixLine(strip.image.data, line * width * 4, covered, colours, width);
  });
  strip.ctx.putImageData(strip.image, 0, 0);
  const ctx = sheet.ctx;
  ctx.imageSmoothingEnabled = false;
  rows.forEach(({ row }, line) => {
    const [y, high] = bandOf(row, look);
    ctx.drawImage(strip.canvas, 0, line, width, 1, area.left, y, area.plot, high);
  });
}

// The paints of what is not selected; all are as ever while nothing is.
function faintPaints({ meta, theme, number }, paints = meta.colours.paints) {
  return number >= 0 ? paints.map((paint) => fainter(paint, theme.paper, FAINT)) : paints;
}

// The paints of what is too thin for an edge: on dark paper the darkest would vanish, so it is lighter.
function thinPaints({ meta, theme }) {
  const { paints } = meta.colours;
  const dark = theme.isDark ? darkest(paints) : -1;
  return paints.map((paint, n) => (n === dark ? fainter(paint, "255 255 255", 0.6) : paint));
}

// What tells the darkest boxes from dark paper.
function edgeOf(isFaint) {
  return `rgba(255, 255, 255, ${isFaint ? 0.25 : 0.6})`;
}

function mixLine(pixels, at, covered, colours, width) {
  for (let x = 0; x < width; x++, at += 4) {
    let busy = 0;
    let r = 0;
    let g = 0;
    let b = 0;
    for (let k = 0; k < colours.length; k++) {
      const share = covered[k * width + x];
      if (!share) continue;
      busy += share;
      r += share * colours[k][0];
      g += share * colours[k][1];
      b += share * colours[k][2];
    }
    if (!busy) continue;
    pixels[at] = r / busy;
    pixels[at + 1] = g / busy;
    pixels[at + 2] = b / busy;
    pixels[at + 3] = 255 * Math.min(1, busy);
  }
}

// Where a box is drawn: with a gap of half a pixel on either side, unless it is narrow.
export function rectOf(box, look) {
  const { data, area, shown, meta } = look;
  const centre = area.top + (data.row[box] + 0.5) * area.row;
  const scale = (area.row >= 5 ? 1 : 0.5 / meta.half) * (data.outline_start && area.row >= 8 ? WITHIN : 1);
  const x = timeToX(data.start[box], shown, area);
  const wide = timeToX(data.end[box], shown, area) - x;
  const y = centre + data.top[box] * scale * area.row;
  return [x, y, wide, (data.bottom[box] - data.top[box]) * scale * area.row];
}

function paintBoxes(sheet, look, rows) {
  const { data, meta, area, theme, number } = look;
  const ctx = sheet.ctx;
  const faint = faintPaints(look);
  const thin = faintPaints(look, thinPaints(look));
  const dark = theme.isDark ? darkest(meta.colours.paints) : -1;
  // One colour after the other: to change it costs more than to look at a box again.
  for (let paint = 0; paint < meta.colours.paints.length; paint++) {
    ctx.strokeStyle = edgeOf(number >= 0);
    ctx.fillStyle = faint[paint];
    let wasThin = false;
    ctx.lineWidth = 1;
    for (const { from, to } of rows) {
      for (let i = from; i < to; i++) {
        if (data.paint[i] !== paint) continue;
        const [x, y, wide, high] = rectOf(i, look);
        const left = Math.max(x, area.left - 4);
        const right = Math.min(x + wide, area.left + area.plot + 4);
        const gap = wide > NARROW ? 0.5 : 0;
        const isThin = wide <= 2 * NARROW;
        if (isThin !== wasThin) ctx.fillStyle = (isThin ? thin : faint)[paint];
        wasThin = isThin;
        // Nothing that ran is left out: what takes no time is a line of half a pixel.
        ctx.fillRect(left + gap, y, Math.max(0.5, right - left - 2 * gap), high);
        if (paint === dark && !isThin && high > 4) {
          ctx.strokeRect(left + 1, y + 0.5, right - left - 2, high - 1);
        }
      }
    }
  }
}

function darkest(paints) {
  const level = (paint) => rgbOf(paint).reduce((a, b) => a + b, 0);
  return paints.reduce((best, paint, n) => (level(paint) < level(paints[best]) ? n : best), 0);
}

// The boxes of the selected micro-batch, over the others; they are few.
function paintFollowed(ctx, look, rows) {
  const { data, meta, number, theme } = look;
  const { paints } = meta.colours;
  const thin = thinPaints(look);
  const dark = theme.isDark ? darkest(paints) : -1;
  ctx.strokeStyle = edgeOf(false);
  ctx.lineWidth = 1;
  for (const { from, to } of rows) {
    for (let i = from; i < to; i++) {
      if (data.number[i] !== number) continue;
      const [x, y, wide, high] = rectOf(i, look);
      const gap = wide > NARROW ? 0.5 : 0;
      ctx.fillStyle = (wide > 2 * NARROW ? paints : thin)[data.paint[i]];
      ctx.fillRect(x + gap, y, Math.max(1, wide - 2 * gap), high);
      if (data.paint[i] === dark && wide > 2 * NARROW && high > 4) ctx.strokeRect(x + 1, y + 0.5, wide - 2, high - 1);
    }
  }
}

const SMALL = 9; // pixels: numbers in boxes that share their row with others
const LEAST = 7; // pixels: numbers that are still read
const AROUND = 2; // pixels that a number leaves free in its box

// One size for the numbers of a row, and room for the widest of them: of boxes as wide all are numbered, or none.
function paintNumbers(ctx, look, rows) {
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.font = `100px ${FONT}`;
  const digit = ctx.measureText("0").width / 100; // of a digit, for each pixel of the font
  const state = { ink: "", size: 0 };
  for (const row of rows) {
    let widest = 0;
    for (let i = row.from; i < row.to; i++) if (look.data.number[i] > widest) widest = look.data.number[i];
    const wide = digit * String(widest).length;
    const size = numberSize(look, row, wide);
    for (let i = row.from; i < row.to; i++) paintNumber(ctx, look, i, size, wide, state);
  }
}

// The largest size at which the widest number fits in every box that it fits in at all; `wide` is its width for each
// pixel of the size.
function numberSize(look, { from, to }, wide) {
  const { data, area, shown } = look;
  const perSecond = area.plot / (shown[1] - shown[0]);
  let size = clamp(Math.round(area.row * 0.46), 8, 13);
  for (let i = from; i < to; i++) {
    if (data.start[i] < shown[0] || data.end[i] > shown[1]) continue; // what is cut off does not make others small
    const fits = ((data.end[i] - data.start[i]) * perSecond - AROUND) / wide;
    if (fits >= LEAST && fits < size) size = fits;
  }
  return Math.floor(2 * size) / 2;
}

function paintNumber(ctx, look, box, most, widest, state) {
  const { data, meta, area, theme, number } = look;
  const [x, y, wide, high] = rectOf(box, look);
  const half = data.bottom[box] - data.top[box] < 1.5 * meta.half;
  const room = high - (half ? 0 : 1);
  const size = room < most ? Math.min(most, SMALL) : most;
  if (room < size) return;
  const text = String(data.number[box]);
  const from = Math.max(x, area.left);
  const to = Math.min(x + wide, area.left + area.plot);
  if (to - from < widest * size + AROUND) return;
  if (size !== state.size) ctx.font = `${(state.size = size)}px ${FONT}`;
  const others = number >= 0 && data.number[box] !== number;
  const ink = others ? theme.soft : meta.colours.inks[data.paint[box]];
  if (ink !== state.ink) state.ink = ctx.fillStyle = ink;
  const middle = (from + to) / 2;
  ctx.fillText(text, middle, y + high / 2 + 0.5);
  if (data.later[box] && high >= size + 3) {
    const needed = ctx.measureText(text).width;
    ctx.fillRect(middle - needed / 2, y + high / 2 + size / 2, needed, 1);
  }
}

// What was predicted, as frames as high as the row; what happened lies in them, a little lower.
function paintOutlines(sheet, look) {
  const { data, area, shown, theme } = look;
  const ctx = sheet.ctx;
  const perSecond = area.plot / (shown[1] - shown[0]);
  ctx.beginPath();
  for (let i = 0; i < data.outline_start.length; i++) {
    const start = data.outline_start[i];
    const end = data.outline_end[i];
    if (end < shown[0] || start > shown[1]) continue;
    const wide = (end - start) * perSecond;
    if (wide < 3) continue;
    const [y, high] = bandOf(data.outline_row[i], look);
    ctx.rect(timeToX(start, shown, area), y, wide, high); // neighbours share a line
  }
  ctx.lineWidth = 1.2;
  ctx.strokeStyle = theme.ink;
  ctx.stroke();
}

function paintOverruns(ctx, look) {
  const { data, meta, theme } = look;
  ctx.strokeStyle = theme.warn;
  ctx.lineWidth = 3;
  for (const [, , row] of meta.over.slice(0, 1)) {
    const box = boxOfRow(data, row);
    if (box < 0) continue;
    const [x, y, wide, high] = rectOf(box, look);
    ctx.strokeRect(x, y, Math.max(wide, 3), high);
  }
}

function paintPath(ctx, look) {
  const { data, meta, area, shown } = look;
  const wide = clamp(0.12 * area.row, 1.2, 3.2);
  ctx.beginPath();
  let drawing = false;
  for (const row of look.path) {
    const box = boxOfRow(data, row);
    if (box < 0) continue;
    const y = area.top + (data.row[box] + 0.5 - meta.half - 0.03) * area.row;
    const x = timeToX(data.start[box], shown, area);
    if (drawing) ctx.lineTo(x, y);
    else ctx.moveTo(x, y);
    ctx.lineTo(timeToX(data.end[box], shown, area), y);
    drawing = true;
  }
  ctx.lineJoin = "round";
  ctx.strokeStyle = meta.colours.edge;
  ctx.lineWidth = 1.8 * wide;
  ctx.stroke();
  ctx.strokeStyle = meta.colours.path;
  ctx.lineWidth = wide;
  ctx.stroke();
}
