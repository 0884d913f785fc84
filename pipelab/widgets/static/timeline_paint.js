// Draws a timeline on a canvas: the base (rows, boxes, axis, memory) and what lies over it (selection, chain, moment).
import {
  addCoverage, boxOfRow, clamp, firstVisible, isDense, labelEvery, niceTicks, stepEnvelope, timeToX,
} from "./geometry.js";

const FAINT = 0.25; // what is not of the selected micro-batch
const NARROW = 4; // pixels: narrower boxes have no gap around them, or gaps would wipe them out
const FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif";

const THEME_COLOURS = {
  ink: "--pl-ink", soft: "--pl-soft-ink", paper: "--pl-paper", line: "--pl-line", warn: "--pl-warn",
  idle: "--pl-idle", hatch: "--pl-hatch", accent: "--pl-accent",
};

// The theme's colours as a canvas takes them. A variable may hold another one, so each is resolved by an element.
export function readTheme(root) {
  const probe = document.createElement("span");
  root.append(probe);
  const theme = {};
  for (const [name, variable] of Object.entries(THEME_COLOURS)) {
    probe.style.color = `var(${variable})`;
    theme[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  theme.isDark = brightness(theme.paper) < 0.5;
  return theme;
}

function brightness(colour) {
  const [r, g, b] = (colour.match(/[\d.]+/g) || [255, 255, 255]).map(Number);
  return (0.299 * r + 0.587 * g + 0.114 * b) / 255;
}

function rgbOf(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

// One canvas, its resolution, and what is kept from one painting to the next.
export class Sheet {
  constructor(canvas) {
    this.canvas = canvas;
    this.ctx = canvas.getContext("2d");
    this.ratio = 1;
    this.strip = null;
    this.hatch = null;
  }

  // Fit the canvas to the page's pixels, and start afresh.
  clear(width, height) {
    const ratio = window.devicePixelRatio || 1;
    const wide = Math.max(1, Math.round(width * ratio));
    const high = Math.max(1, Math.round(height * ratio));
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      this.canvas.width = wide;
      this.canvas.height = high;
      this.canvas.style.height = `${height}px`;
    }
    if (ratio !== this.ratio) this.hatch = null;
    this.ratio = ratio;
    this.ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.ctx.globalAlpha = 1;
    this.ctx.clearRect(0, 0, width, height);
  }

  // Strokes over idle time; made once for a colour.
  hatching(colour) {
    if (this.hatch && this.hatch.colour === colour) return this.hatch.pattern;
    const size = Math.round(7 * this.ratio);
    const tile = document.createElement("canvas");
    tile.width = tile.height = size;
    const ctx = tile.getContext("2d");
    ctx.strokeStyle = colour;
    ctx.lineWidth = this.ratio;
    for (const shift of [-size, 0, size]) {
      ctx.beginPath();
      ctx.moveTo(shift - 1, size + 1);
      ctx.lineTo(shift + size + 1, -1);
      ctx.stroke();
    }
    const pattern = this.ctx.createPattern(tile, "repeat");
    pattern.setTransform(new DOMMatrix().scale(1 / this.ratio));
    this.hatch = { colour, pattern };
    return pattern;
  }

  // Pixels to be stretched over rows: one line of `width` device pixels for each row.
  pixels(width, rows) {
    if (!this.strip || this.strip.canvas.width !== width || this.strip.canvas.height !== rows) {
      const canvas = document.createElement("canvas");
      canvas.width = width;
      canvas.height = rows;
      const ctx = canvas.getContext("2d", { willReadFrequently: false });
      this.strip = { canvas, ctx, image: ctx.createImageData(width, rows) };
    }
    this.strip.image.data.fill(0);
    return this.strip;
  }
}

// ---- the base

// `look` is all that a picture depends on: data, meta, area, shown, theme, number (of the selected micro-batch or -1),
// path (rows of the trace, or null).
export function paintBase(sheet, look) {
  const { area, theme } = look;
  const ctx = sheet.ctx;
  sheet.clear(area.width, area.height);
  paintRowLabels(ctx, look);
  ctx.save();
  ctx.beginPath();
  ctx.rect(area.left, 0, area.plot, area.axisTop + 1);
  ctx.clip();
  paintIdle(sheet, look);
  const visible = visibleRows(look);
  paintDenseRows(sheet, look, visible.filter((row) => row.dense));
  const sparse = visible.filter((row) => !row.dense);
  paintBoxes(sheet, look, sparse);
  if (look.number >= 0) paintFollowed(ctx, look, visible.filter((row) => row.dense));
  paintNumbers(ctx, look, sparse);
  if (look.data.outline_start) paintOutlines(sheet, look);
  if (area.strips) paintStrips(ctx, look);
  paintOverruns(ctx, look);
  if (look.path) paintPath(ctx, look);
  ctx.restore();
  if (area.strips) paintStripLabels(ctx, look);
  paintAxis(ctx, look);
  ctx.fillStyle = theme.ink;
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
function bandOf(row, { area, meta }) {
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
  const { data, meta, area, shown, number } = look;
  const width = Math.max(1, Math.round(area.plot * sheet.ratio));
  const strip = sheet.pixels(width, rows.length);
  const colours = meta.colours.paints.map(rgbOf);
  const covered = new Float32Array(colours.length * width);
  const alpha = number >= 0 ? 255 * FAINT : 255;
  rows.forEach(({ from, to }, line) => {
    covered.fill(0);
    addCoverage(covered, data, from, to, shown, width, 2 * meta.half);
    mixLine(strip.image.data, line * width * 4, covered, colours, width, alpha);
  });
  strip.ctx.putImageData(strip.image, 0, 0);
  const ctx = sheet.ctx;
  ctx.imageSmoothingEnabled = false;
  rows.forEach(({ row }, line) => {
    const [y, high] = bandOf(row, look);
    ctx.drawImage(strip.canvas, 0, line, width, 1, area.left, y, area.plot, high);
  });
}

function mixLine(pixels, at, covered, colours, width, alpha) {
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
    pixels[at + 3] = alpha * Math.min(1, busy);
  }
}

// Where a box is drawn: with a gap of half a pixel on either side, unless it is narrow.
export function rectOf(box, look) {
  const { data, area, shown, meta } = look;
  const centre = area.top + (data.row[box] + 0.5) * area.row;
  const scale = area.row >= 5 ? 1 : 0.5 / meta.half;
  const x = timeToX(data.start[box], shown, area);
  const wide = timeToX(data.end[box], shown, area) - x;
  const y = centre + data.top[box] * scale * area.row;
  return [x, y, wide, (data.bottom[box] - data.top[box]) * scale * area.row];
}

function paintBoxes(sheet, look, rows) {
  const { data, meta, area, theme, number } = look;
  const ctx = sheet.ctx;
  const dark = theme.isDark ? darkest(meta.colours.paints) : -1;
  // One colour after the other: to change it costs more than to look at a box again.
  for (let paint = 0; paint < meta.colours.paints.length; paint++) {
    ctx.fillStyle = meta.colours.paints[paint];
    ctx.strokeStyle = "rgba(255, 255, 255, 0.6)";
    ctx.lineWidth = 1;
    for (const { from, to } of rows) {
      for (let i = from; i < to; i++) {
        if (data.paint[i] !== paint) continue;
        const [x, y, wide, high] = rectOf(i, look);
        const left = Math.max(x, area.left - 4);
        const right = Math.min(x + wide, area.left + area.plot + 4);
        const gap = wide > NARROW ? 0.5 : 0;
        if (number >= 0) ctx.globalAlpha = data.number[i] === number ? 1 : FAINT;
        // Nothing that ran is left out: what takes no time is a line of half a pixel.
        ctx.fillRect(left + gap, y, Math.max(0.5, right - left - 2 * gap), high);
        if (paint === dark && wide > NARROW && high > 4) {
          ctx.strokeRect(left + 1, y + 0.5, right - left - 2, high - 1);
        }
      }
    }
  }
  ctx.globalAlpha = 1;
}

function darkest(paints) {
  const level = (paint) => rgbOf(paint).reduce((a, b) => a + b, 0);
  return paints.reduce((best, paint, n) => (level(paint) < level(paints[best]) ? n : best), 0);
}

// The boxes of the selected micro-batch over averaged rows; they are few.
function paintFollowed(ctx, look, rows) {
  const { data, meta, number } = look;
  for (const { from, to } of rows) {
    for (let i = from; i < to; i++) {
      if (data.number[i] !== number) continue;
      const [x, y, wide, high] = rectOf(i, look);
      ctx.fillStyle = meta.colours.paints[data.paint[i]];
      ctx.fillRect(x, y, Math.max(1, wide), high);
    }
  }
}

function numberSize(area) {
  return clamp(Math.round(area.row * 0.46), 8, 13);
}

function paintNumbers(ctx, look, rows) {
  const { data, meta, area, number } = look;
  const size = numberSize(area);
  ctx.font = `${size}px ${FONT}`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  const digit = ctx.measureText("0").width;
  let ink = "";
  for (const { from, to } of rows) {
    for (let i = from; i < to; i++) {
      const text = String(data.number[i]);
      const [x, y, wide, high] = rectOf(i, look);
      if (wide < digit * text.length + 3 || high < size + 1) continue;
      const left = Math.max(x, area.left);
      const right = Math.min(x + wide, area.left + area.plot);
      if (right - left < digit * text.length + 3) continue;
      const next = meta.colours.inks[data.paint[i]];
      if (next !== ink) {
        ink = next;
        ctx.fillStyle = ctx.strokeStyle = ink;
      }
      if (number >= 0) ctx.globalAlpha = data.number[i] === number ? 1 : FAINT;
      const middle = (left + right) / 2;
      ctx.fillText(text, middle, y + high / 2 + 0.5);
      if (data.later[i] && high >= size + 3) ctx.fillRect(middle - (digit * text.length) / 2, y + high / 2 + size / 2, digit * text.length, 1);
    }
  }
  ctx.globalAlpha = 1;
}

// What was predicted, as frames over what happened; where there are too many, as a line of its own along the row.
function paintOutlines(sheet, look) {
  const { data, area, shown, theme } = look;
  const ctx = sheet.ctx;
  const perSecond = area.plot / (shown[1] - shown[0]);
  ctx.strokeStyle = theme.ink;
  ctx.lineWidth = 1.25;
  ctx.beginPath();
  for (let i = 0; i < data.outline_start.length; i++) {
    const start = data.outline_start[i];
    const end = data.outline_end[i];
    if (end < shown[0] || start > shown[1]) continue;
    const wide = (end - start) * perSecond;
    if (wide < 3) continue;
    const [y, high] = bandOf(data.outline_row[i], look);
    ctx.rect(timeToX(start, shown, area) + 0.5, y - 0.5, wide - 1, high + 1);
  }
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

// ---- labels and axis

function paintRowLabels(ctx, { area, theme, labels }) {
  ctx.font = `12px ${FONT}`;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  ctx.fillStyle = theme.ink;
  const every = labelEvery(area.rows, area.row, 13);
  for (let row = 0; row < area.rows; row += every) {
    ctx.fillText(labels[row], 2, area.top + (row + 0.5) * area.row, area.left - 8);
  }
}

function paintAxis(ctx, { area, shown, meta, theme }) {
  const [unit, unitName] = meta.unit;
  ctx.font = `12px ${FONT}`;
  ctx.strokeStyle = theme.line;
  ctx.lineWidth = 1;
  ctx.beginPath();
  ctx.moveTo(area.left, area.axisTop + 0.5);
  ctx.lineTo(area.left + area.plot, area.axisTop + 0.5);
  const ticks = niceTicks(shown, Math.max(2, Math.floor(area.plot / 90)), unit);
  for (const { time } of ticks) {
    const x = timeToX(time, shown, area);
    ctx.moveTo(x, area.axisTop);
    ctx.lineTo(x, area.axisTop + 4);
  }
  ctx.stroke();
  ctx.fillStyle = theme.ink;
  ctx.textBaseline = "top";
  const right = area.width - 2;
  for (const { time, text } of ticks) {
    const x = timeToX(time, shown, area);
    const half = ctx.measureText(text).width / 2;
    ctx.textAlign = x + half > right ? "right" : "center";
    ctx.fillText(text, ctx.textAlign === "right" ? right : x, area.axisTop + 6);
  }
  ctx.textAlign = "left";
  ctx.fillStyle = theme.soft;
  ctx.fillText(`time [${unitName}]`, area.left, area.axisTop + 20);
}

// ---- memory

function paintStrips(ctx, look) {
  const { data, meta, area, shown, theme } = look;
  const { most, limit } = meta.memory;
  const last = clamp(timeToX(meta.makespan, shown, area), area.left, area.left + area.plot);
  const width = Math.max(1, Math.floor(area.plot));
  const high = area.strip * 0.82;
  for (let rank = 0; rank < area.strips; rank++) {
    const floor = area.stripsTop + (rank + 1) * area.strip - 1;
    const reached = stepEnvelope(data.memory_time, data.memory_value, data.memory_first[rank], data.memory_first[rank + 1], shown, width);
    ctx.beginPath();
    ctx.moveTo(area.left, floor);
    let before = -1;
    for (let x = 0; x < width && area.left + x < last; x++) {
      const y = floor - (high * reached[x]) / most;
      if (y !== before) {
        if (before >= 0) ctx.lineTo(area.left + x, before);
        ctx.lineTo(area.left + x, y);
        before = y;
      }
    }
    ctx.lineTo(last, before >= 0 ? before : floor);
    ctx.lineTo(last, floor);
    ctx.closePath();
    ctx.fillStyle = meta.colours.memory;
    ctx.fill();
    ctx.fillStyle = theme.line;
    ctx.fillRect(area.left, floor, area.plot, 1);
    if (limit > 0) {
      ctx.strokeStyle = theme.warn;
      ctx.lineWidth = 1.5;
      ctx.setLineDash([5, 3]);
      ctx.beginPath();
      const y = floor - (high * limit) / most;
      ctx.moveTo(area.left, y);
      ctx.lineTo(last, y);
      ctx.stroke();
      ctx.setLineDash([]);
    }
  }
  for (const [rank, time] of meta.over) markOver(ctx, timeToX(time, shown, area), area.stripsTop + rank * area.strip, theme);
}

function markOver(ctx, x, y, theme) {
  ctx.fillStyle = theme.warn;
  ctx.beginPath();
  ctx.moveTo(x - 5, y);
  ctx.lineTo(x + 5, y);
  ctx.lineTo(x, y + 8);
  ctx.closePath();
  ctx.fill();
}

function paintStripLabels(ctx, { area, meta, theme, labels }) {
  ctx.font = `12px ${FONT}`;
  ctx.textAlign = "left";
  ctx.fillStyle = theme.soft;
  ctx.textBaseline = "bottom";
  const limit = meta.memory.limit > 0 ? ` \u00b7 - - ${meta.memory.limit_text}` : "";
  ctx.fillText(meta.memory.title + limit, area.left, area.stripsTop - 2, area.plot);
  ctx.textBaseline = "middle";
  ctx.fillStyle = theme.ink;
  const every = labelEvery(area.strips, area.strip, 13);
  for (let rank = 0; rank < area.strips; rank += every) {
    const y = area.stripsTop + (rank + 0.5) * area.strip;
    ctx.fillText(meta.memory.labels[rank], 2, y, area.left - 8);
    ctx.fillText(`peak ${meta.memory.peaks[rank]}`, area.left + area.plot + 6, y, area.right - 6);
  }
}

// ---- what lies over the base

// `over` is box (hovered), selected, before, after (boxes), chain (boxes), moment.
export function paintOver(sheet, look, over) {
  const { area, shown, theme, meta } = look;
  const ctx = sheet.ctx;
  sheet.clear(area.width, area.height);
  ctx.save();
  ctx.beginPath();
  ctx.rect(area.left, 0, area.plot, area.axisTop + 1);
  ctx.clip();
  if (over.moment >= 0) paintMoment(ctx, look, over.moment);
  for (const box of over.before) paintLink(ctx, look, box, over.selected);
  for (const box of over.after) paintLink(ctx, look, over.selected, box);
  if (over.chain.length) paintChain(ctx, look, over.chain);
  if (over.gap) frame(ctx, gapRect(look, over.gap), theme.ink, theme.paper, [4, 3]);
  if (over.selected >= 0) frame(ctx, rectOf(over.selected, look), theme.ink, meta.colours.path, []);
  if (over.box >= 0 && over.box !== over.selected) frame(ctx, rectOf(over.box, look), theme.ink, theme.paper, []);
  ctx.restore();
  if (over.moment >= 0) {
    ctx.fillStyle = theme.ink;
    const x = timeToX(over.moment, shown, area);
    if (x >= area.left - 1 && x <= area.left + area.plot + 1) ctx.fillRect(x - 1, 0, 2, area.axisTop);
  }
}

function paintMoment(ctx, { area, shown, theme }, moment) {
  const x = Math.max(area.left, timeToX(moment, shown, area));
  ctx.globalAlpha = 0.72;
  ctx.fillStyle = theme.paper;
  ctx.fillRect(x, 0, area.left + area.plot - x, area.axisTop);
  ctx.globalAlpha = 1;
}

function gapRect(look, { row, from, to }) {
  const [y, high] = bandOf(row, look);
  const x = timeToX(from, look.shown, look.area);
  return [x, y, timeToX(to, look.shown, look.area) - x, high];
}

function frame(ctx, [x, y, wide, high], outer, inner, dash) {
  const width = Math.max(wide, 3);
  ctx.lineWidth = 4;
  ctx.strokeStyle = inner;
  ctx.strokeRect(x, y, width, high);
  ctx.lineWidth = 2;
  ctx.strokeStyle = outer;
  ctx.setLineDash(dash);
  ctx.strokeRect(x, y, width, high);
  ctx.setLineDash([]);
}

// From the end of what gives to the start of what takes.
function paintLink(ctx, look, giver, taker) {
  const a = rectOf(giver, look);
  const b = rectOf(taker, look);
  stroked(ctx, look, () => {
    const [x0, y0] = [a[0] + a[2], a[1] + a[3] / 2];
    const [x1, y1] = [b[0], b[1] + b[3] / 2];
    const bend = Math.max(10, Math.min(40, Math.abs(x1 - x0) / 2));
    ctx.moveTo(x0, y0);
    ctx.bezierCurveTo(x0 + bend, y0, x1 - bend, y1, x1, y1);
    ctx.moveTo(x1 - 6, y1 - 4);
    ctx.lineTo(x1, y1);
    ctx.lineTo(x1 - 6, y1 + 4);
  }, 2);
}

// What a gap waits for, back to what ran when it began.
function paintChain(ctx, look, chain) {
  for (const box of chain) frame(ctx, rectOf(box, look), look.meta.colours.path, look.meta.colours.edge, []);
  for (let k = 0; k + 1 < chain.length; k++) paintLink(ctx, look, chain[k + 1], chain[k]);
}

function stroked(ctx, { meta }, draw, wide) {
  ctx.beginPath();
  draw();
  ctx.lineJoin = ctx.lineCap = "round";
  ctx.lineWidth = wide + 2;
  ctx.strokeStyle = meta.colours.edge;
  ctx.stroke();
  ctx.lineWidth = wide;
  ctx.strokeStyle = meta.colours.path;
  ctx.stroke();
}
