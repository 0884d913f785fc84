// Draws what lies over the boxes: the pointer's box or gap, the selection with its dependencies, a moment.
import { timeToX } from "./geometry.js";
import { bandOf, rectOf } from "./timeline_paint.js";

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
  for (const box of over.before) paintLink(ctx, look, box, over.selected, over.selected);
  for (const box of over.after) paintLink(ctx, look, over.selected, box, over.selected);
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
function paintLink(ctx, look, giver, taker, selected) {
  const a = rectOf(giver, look);
  const b = rectOf(taker, look);
  const { path, edge } = look.meta.colours;
  for (const [box, rect] of [[giver, a], [taker, b]]) if (box !== selected) frame(ctx, rect, path, edge, []);
  if (look.data.row[giver] === look.data.row[taker] && Math.abs(b[0] - a[0] - a[2]) < 14) return; // they touch
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
  if (chain.length === 1) frame(ctx, rectOf(chain[0], look), look.meta.colours.path, look.meta.colours.edge, []);
  for (let k = 0; k + 1 < chain.length; k++) paintLink(ctx, look, chain[k + 1], chain[k], -1);
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
