// What stands around the boxes: row labels, the time axis, and the strips of memory under it.
import { clamp, labelEvery, niceTicks, stepEnvelope, timeToX, timeUnit } from "./geometry.js";
import { FONT } from "./timeline_sheet.js";

export function paintRowLabels(ctx, { area, theme, labels }) {
  ctx.font = `12px ${FONT}`;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  ctx.fillStyle = theme.ink;
  const every = labelEvery(area.rows, area.row, 13);
  for (let row = 0; row < area.rows; row += every) {
    ctx.fillText(labels[row], 2, area.top + (row + 0.5) * area.row, area.left - 8);
  }
}

export function paintAxis(ctx, { area, shown, stop, theme }) {
  const [unit, unitName] = timeUnit(stop); // of the axis, which several timelines may share
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

export function paintStrips(ctx, look) {
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
      ctx.strokeStyle = theme.ink;
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

export function paintStripLabels(ctx, { area, meta, theme, labels }) {
  ctx.font = `12px ${FONT}`;
  ctx.textAlign = "left";
  ctx.fillStyle = theme.soft;
  ctx.textBaseline = "bottom";
  const limit = meta.memory.limit > 0 ? ` \u00b7 - - ${meta.memory.limit_text}` : "";
  ctx.fillText(meta.memory.title + limit, area.left, area.stripsTop - 2, area.plot + area.right);
  ctx.textBaseline = "middle";
  ctx.fillStyle = theme.ink;
  const every = labelEvery(area.strips, area.strip, 13);
  for (let rank = 0; rank < area.strips; rank += every) {
    const y = area.stripsTop + (rank + 0.5) * area.strip;
    ctx.fillText(meta.memory.labels[rank], 2, y, area.left - 8);
    ctx.fillText(`peak ${meta.memory.peaks[rank]}`, area.left + area.plot + 6, y, area.right - 6);
  }
}
