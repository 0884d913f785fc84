// What the pointer is on: an action names itself at once, a gap asks the kernel why, memory tells what is held.
import { asBytes, asSeconds, describeBox, gapAt, heldAt, stripAt, tipTop } from "./geometry.js";
import { hideTip, showTip } from "./timeline_parts.js";

export const ASK_AFTER = 60; // ms of rest before the kernel is asked: a hand on its way asks nothing

export class TimelineHover {
  constructor(screen) {
    this.screen = screen;
    this.forget();
  }

  // Nothing is under the pointer, and no answer is waited for.
  forget() {
    Object.assign(this, { box: -1, gap: null, chain: [], words: "", asked: -1 });
    clearTimeout(this.screen.timers.why);
    hideTip(this.screen.parts);
  }

  nothing() {
    const had = this.box >= 0 || this.gap;
    this.forget();
    if (had) this.screen.refreshOver();
  }

  at(point) {
    const { meta } = this.screen;
    const { row, time, box } = point;
    this.pointer = point;
    if (box >= 0) this.overBox(box);
    else if (row >= 0 && meta.own[row] && time >= 0 && time <= meta.makespan) this.overGap(row, time);
    else this.overStrip(point);
  }

  overBox(box) {
    const { data, meta } = this.screen;
    if (this.box !== box) {
      this.forget();
      this.box = box;
      this.screen.refreshOver();
    }
    this.tip(describeBox(data, meta, box));
  }

  overGap(row, time) {
    const { data, meta } = this.screen;
    const [from, to] = gapAt(data, row, time, meta.makespan);
    const rank = meta.row_rank[row];
    if (!this.gap || this.gap.row !== row || this.gap.from !== from) {
      this.forget();
      this.gap = { row, from, to };
      this.asked = this.screen.ask("why", { rank, time });
      this.screen.refreshOver();
    }
    const idle = `rank ${rank} is idle for ${asSeconds(to - from)}, from ${asSeconds(from)} to ${asSeconds(to)}`;
    this.tip(["", this.words || idle]);
  }

  // Over the memory: what the rank holds at that moment.
  overStrip({ x, y, time }) {
    const { area, data, meta } = this.screen;
    this.nothing();
    const rank = x >= area.left && x <= area.left + area.plot ? stripAt(y, area) : -1;
    if (rank < 0 || time < 0 || time > meta.makespan) return;
    const held = heldAt(data, rank, time);
    const amount = meta.memory.in_bytes ? asBytes(held) : `${held} in flight`;
    this.tip([`rank ${rank}`, `holds ${amount} at ${asSeconds(time)}`]);
  }

  answered({ id, rows, sentence }) {
    if (id !== this.asked || !this.gap) return;
    this.chain = this.screen.boxesOf(rows);
    this.words = sentence;
    this.tip(["", sentence]);
    this.screen.refreshOver();
  }

  // What is explained stays in sight: the row under the pointer, and those of the chain.
  tip(lines) {
    const { area, data } = this.screen;
    const { x, y, row } = this.pointer;
    const at = row >= 0 ? row : (y - area.top) / area.row; // over the memory: as if its strip were a row
    const rows = [...new Set(this.chain.map((box) => data.row[box]))];
    showTip(this.screen.parts, lines, x, (high) => tipTop(area, y, at, rows, high));
  }
}
