// The geometry of a timeline, without a page: node --test tests/widgets/js/geometry.test.mjs
import assert from "node:assert/strict";
import test from "node:test";

import * as g from "./geometry.under_test.mjs";

const FIELDS = { start: "f8", end: "f8", top: "f4", bottom: "f4", row: "i4", of: "i4", number: "i4", stage: "i4", kind: "u1", lane: "u1", paint: "u1", later: "u1" };
const ARRAYS = { f8: Float64Array, f4: Float32Array, i4: Int32Array, u1: Uint8Array };

// Boxes [row, start, end, paint, extra], packed as the kernel packs them, at an odd offset of a larger buffer.
function pack(boxes, rows) {
  const parts = [];
  const columns = {};
  let offset = 0;
  boxes.forEach((box, n) => (box.of = box[4]?.of ?? n));
  const value = {
    row: (b) => b[0], start: (b) => b[1], end: (b) => b[2], paint: (b) => b[3] ?? 0, of: (b) => b.of,
    top: (b) => b[4]?.top ?? -0.4, bottom: (b) => b[4]?.bottom ?? 0.4, number: (b) => b[4]?.number ?? 0,
  };
  for (const [name, type] of Object.entries(FIELDS)) {
    const array = ARRAYS[type].from(boxes.map(value[name] || (() => 0)));
    columns[name] = [type, offset, array.length];
    parts.push(Buffer.from(array.buffer));
    offset += array.byteLength;
  }
  const bytes = Buffer.concat([Buffer.from([0, 0, 0]), ...parts]);
  const meta = { columns, count: boxes.length, rows: Array.from({ length: rows }, (_, n) => `rank ${n}`) };
  return g.loadColumns(new DataView(bytes.buffer, bytes.byteOffset + 3, offset), meta);
}

// A pseudo-random row of boxes without overlaps, always the same.
function many(count, rows = 1) {
  let seed = 7;
  const random = () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648;
  const boxes = [];
  for (let row = 0; row < rows; row++) {
    let time = 0;
    for (let n = 0; n < count; n++) {
      const start = time + (random() < 0.4 ? random() : 0);
      time = start + random();
      boxes.push([row, start, time, n % 2]);
    }
  }
  return boxes;
}

test("columns are read from a buffer that begins anywhere", () => {
  const data = pack([[0, 0, 1, 2], [1, 0.5, 2.5, 1], [1, 3, 4]], 3);
  assert.deepEqual([...data.first], [0, 1, 3, 3]);
  assert.deepEqual([...data.end], [1, 2.5, 4]);
  assert.deepEqual([...data.paint], [2, 1, 0]);
});

test("an empty trace has no boxes and no rows", () => {
  const data = g.loadColumns(null, {});
  assert.equal(data.count, 0);
  assert.deepEqual([...data.first], [0]);
});

test("the first visible box is the one a plain search finds, also where boxes overlap", () => {
  const overlapping = [[0, 0, 10], [0, 1, 2], [0, 3, 4], [0, 5, 20], [0, 6, 7]];
  for (const boxes of [many(200), overlapping]) {
    const data = pack(boxes, 1);
    const last = Math.max(...boxes.map((b) => b[2]));
    for (let k = 0; k <= 100; k++) {
      const time = (last * k) / 100;
      const plain = boxes.findIndex((b, i) => Math.max(...boxes.slice(0, i + 1).map((x) => x[2])) > time);
      assert.equal(g.firstVisible(data, 0, time), plain < 0 ? boxes.length : plain);
    }
  }
});

test("a box is hit exactly where it is", () => {
  const boxes = many(300, 3);
  const data = pack(boxes, 3);
  boxes.forEach((box, n) => {
    assert.equal(g.hitBox(data, box[0], (box[1] + box[2]) / 2, 0), n);
  });
  const idle = boxes.findIndex((box, n) => n && box[0] === boxes[n - 1][0] && box[1] - boxes[n - 1][2] > 0.1);
  assert.equal(g.hitBox(data, boxes[idle][0], (boxes[idle][1] + boxes[idle - 1][2]) / 2, 0), -1);
  assert.equal(g.hitBox(data, -1, 0, 0), -1);
});

test("where two boxes touch, the one that starts there is hit", () => {
  const data = pack([[0, 0, 1], [0, 1, 2]], 1);
  assert.equal(g.hitBox(data, 0, 1, 0, 0.1), 1);
  assert.equal(g.hitBox(data, 0, 0.95, 0, 0.1), 0);
});

test("members of an overlap are told apart by height", () => {
  const data = pack([[0, 0, 1, 0, { of: 0, bottom: 0 }], [0, 0, 1, 1, { of: 0, top: 0 }]], 1);
  assert.equal(g.hitBox(data, 0, 0.5, -0.2), 0);
  assert.equal(g.hitBox(data, 0, 0.5, 0.2), 1);
});

test("a box thinner than a pixel can be hit within the slack", () => {
  const data = pack([[0, 5, 5.001]], 1);
  assert.equal(g.hitBox(data, 0, 5.05, 0, 0), -1);
  assert.equal(g.hitBox(data, 0, 5.05, 0, 0.1), 0);
});

test("a gap lies between what ran and what runs next, and at the ends of the step", () => {
  const data = pack([[0, 1, 2], [0, 4, 5]], 2);
  assert.deepEqual(g.gapAt(data, 0, 3, 10), [2, 4]);
  assert.deepEqual(g.gapAt(data, 0, 0.5, 10), [0, 1]);
  assert.deepEqual(g.gapAt(data, 0, 7, 10), [5, 10]);
  assert.deepEqual(g.gapAt(data, 1, 7, 10), [0, 10]);
});

test("keys go along a row, past members of the same cell, and across rows to the nearest in time", () => {
  const data = pack([[0, 0, 1, 0, { of: 0 }], [0, 0, 1, 1, { of: 0 }], [0, 1, 2, 0, { of: 1 }], [2, 0, 0.5, 0, { of: 2 }], [2, 1.4, 2, 0, { of: 3 }]], 3);
  assert.equal(g.alongRow(data, 0, 1), 2);
  assert.equal(g.alongRow(data, 2, 1), 2);
  assert.equal(data.of[g.alongRow(data, 2, -1)], 0);
  assert.equal(g.acrossRows(data, 2, 1), 4);
  assert.equal(g.acrossRows(data, 0, 1), 3);
  assert.equal(g.acrossRows(data, 0, -1), 0);
});

test("coverage sums to the busy time at any width, and nothing is dropped", () => {
  const boxes = many(5000);
  const data = pack(boxes, 1);
  const stop = boxes.at(-1)[2];
  const busy = [0, 0];
  for (const box of boxes) busy[box[3]] += box[2] - box[1];
  for (const width of [1, 7, 100, 1333]) {
    const into = new Float64Array(2 * width);
    g.addCoverage(into, data, 0, data.count, [0, stop], width, 0.8);
    for (const paint of [0, 1]) {
      const sum = into.subarray(paint * width, (paint + 1) * width).reduce((a, b) => a + b, 0);
      assert.ok(Math.abs((sum * stop) / width - busy[paint]) < 1e-6 * stop, `paint ${paint} at ${width}`);
    }
    assert.ok(into.every((share) => share >= 0 && share <= 1 + 1e-9));
  }
});

// A box's height is of single precision.
const rounded = (values) => [...values].map((value) => Number(value.toFixed(6)));

test("coverage of a part of the axis is that part of it", () => {
  const data = pack([[0, 0, 4]], 1);
  const into = new Float64Array(4);
  g.addCoverage(into, data, 0, 1, [1, 3], 4, 0.8);
  assert.deepEqual(rounded(into), [1, 1, 1, 1]);
  into.fill(0);
  g.addCoverage(into, data, 0, 1, [3, 5], 4, 0.8);
  assert.deepEqual(rounded(into), [1, 1, 0, 0]);
});

test("a member of an overlap covers its share of the height", () => {
  const data = pack([[0, 0, 1, 0, { bottom: 0 }]], 1);
  const into = new Float64Array(1);
  g.addCoverage(into, data, 0, 1, [0, 1], 1, 0.8);
  assert.ok(Math.abs(into[0] - 0.5) < 1e-6);
});

test("a row is dense when its boxes are narrower than three pixels on average", () => {
  assert.equal(g.isDense(100, 100, 2), true);
  assert.equal(g.isDense(100, 100, 4), false);
  assert.equal(g.isDense(3, 0.001, 1), false, "a few thin boxes are drawn as they are");
});

test("memory keeps its peaks at any width", () => {
  const time = Float64Array.from({ length: 1000 }, (_, n) => n);
  const value = Float64Array.from(time, (n) => (n === 617 ? 99 : n % 7));
  for (const width of [1, 10, 333, 2000]) {
    const most = g.stepEnvelope(time, value, 0, 1000, [0, 1000], width);
    assert.equal(Math.max(...most), 99, `at ${width}`);
  }
  assert.equal(g.stepEnvelope(time, value, 0, 1000, [100, 101], 1)[0], 100 % 7);
});

test("what a rank holds is told from the moment it holds it", () => {
  const data = { memory_first: [0, 3, 5], memory_time: [0, 1, 4, 0, 2], memory_value: [10, 20, 15, 7, 9] };
  assert.deepEqual([0, 0.99, 1, 3.9, 4, 99].map((time) => g.heldAt(data, 0, time)), [10, 10, 20, 20, 15, 15]);
  assert.deepEqual([0, 2].map((time) => g.heldAt(data, 1, time)), [7, 9]);
  const area = g.layoutOf({ rows: 4, strips: 2, width: 900, left: 60, right: 80 });
  assert.equal(g.stripAt(area.stripsTop + 1.5 * area.strip, area), 1);
  assert.equal(g.stripAt(area.top + area.row, area), -1);
  assert.equal(g.stripAt(50, g.layoutOf({ rows: 4, strips: 0, width: 900, left: 60, right: 12 })), -1);
});

test("zooming keeps the moment under the pointer, and stays on the axis", () => {
  const shown = g.zoomed([0, 100], 0.5, 30, 100, 1);
  assert.deepEqual(shown, [15, 65]);
  const back = g.zoomed(shown, 2, 30, 100, 1);
  assert.deepEqual(back, [0, 100]);
  assert.deepEqual(g.zoomed([0, 100], 0.001, 50, 100, 1), [49.5, 50.5]);
  assert.deepEqual(g.zoomed([90, 100], 4, 100, 100, 1), [60, 100]);
});

test("panning stops at the ends", () => {
  assert.deepEqual(g.panned([10, 20], 100, 50), [40, 50]);
  assert.deepEqual(g.panned([10, 20], -100, 50), [0, 10]);
});

test("a view of another trace is moved onto this axis, and (0, 0) is all of it", () => {
  assert.deepEqual(g.shownOf([0, 0], 10, 1), [0, 10]);
  assert.deepEqual(g.shownOf([8, 14], 10, 1), [4, 10]);
  assert.deepEqual(g.shownOf([2, 2.001], 10, 1), [2, 3]);
  assert.deepEqual(g.shownOf([NaN, Infinity], 10, 1), [0, 10]);
  assert.deepEqual(g.spanOf([0, 10], 10), [0, 0]);
  assert.deepEqual(g.spanOf([1, 10], 10), [1, 10]);
});

test("what is selected is brought into view by the least move", () => {
  assert.deepEqual(g.revealed([0, 10], 4, 5, 100), [0, 10]);
  assert.deepEqual(g.revealed([0, 10], 10, 12, 100), [3, 13]);
  assert.deepEqual(g.revealed([50, 60], 10, 12, 100), [9, 19]);
});

test("x and time are each other's inverse, and rows are where they are drawn", () => {
  const area = g.layoutOf({ rows: 4, strips: 0, width: 900, left: 60, right: 12 });
  for (const x of [60, 333, 888]) {
    assert.ok(Math.abs(g.timeToX(g.xToTime(x, [2, 7], area), [2, 7], area) - x) < 1e-9);
  }
  assert.equal(g.rowAt(area.top + 2.5 * area.row, area), 2);
  assert.equal(g.rowAt(area.top + 4.1 * area.row, area), -1);
  assert.equal(g.rowAt(0, area), -1);
});

test("many rows get lower, down to three pixels; a given height is kept", () => {
  const size = (rows, strips = 0, height = 0) => g.layoutOf({ rows, strips, width: 900, left: 60, right: 12, height });
  assert.equal(size(4).row, 28);
  assert.equal(size(64).row, 7);
  assert.equal(size(4096).row, 3);
  assert.ok(Math.abs(size(16, 16, 400).height - 400) < 3);
  assert.ok(Math.abs(size(16, 0, 200).height - 200) < 3);
});

test("labels are thinned out to every second, fourth ... row", () => {
  assert.equal(g.labelEvery(8, 28, 13), 1);
  assert.equal(g.labelEvery(64, 7, 13), 2);
  assert.equal(g.labelEvery(200, 3, 13), 8);
});

test("ticks are round, in the unit, within the axis, and have the decimals they need", () => {
  assert.deepEqual(g.niceTicks([0, 33], 8, 1).map((t) => t.text), ["0", "5", "10", "15", "20", "25", "30"]);
  const fine = g.niceTicks([12.0, 12.004], 4, 1);
  assert.deepEqual(fine.map((t) => t.text), ["12.000", "12.001", "12.002", "12.003", "12.004"]);
  assert.deepEqual(g.niceTicks([0, 0.0021], 5, 1e-3).map((t) => t.text), ["0.0", "0.5", "1.0", "1.5", "2.0"]);
  for (const t of g.niceTicks([0.3, 0.9], 7, 1)) assert.ok(t.time >= 0.3 - 1e-9 && t.time <= 0.9 + 1e-9);
});

test("names given by people become one line, not endless, without control characters", () => {
  assert.equal(g.plainText("a\n\tb  c"), "a b c");
  assert.equal(g.plainText("x\u0000\u202ey"), "x\ufffd\ufffdy");
  assert.equal(g.plainText("a".repeat(10000), 9), "aaaa\u2026aaaa");
  assert.equal(g.plainText("<b>$x$</b>"), "<b>$x$</b>");
});

test("one may look as close as a part of the shortest box, whatever the others take", () => {
  const data = pack([[0, 0, 100, 0, {}], [0, 100, 100, 0, {}], [0, 100, 100.004, 0, {}]], 1);
  assert.ok(g.leastSpan(data, 101) <= 0.004 && g.leastSpan(data, 101) > 0);
  assert.deepEqual(g.shownOf([100, 100.004], 101, g.leastSpan(data, 101)), [100, 100.004]);
  assert.ok(g.leastSpan(pack([], 1), 5) > 0);
});

test("an axis has a unit by its length, as plots.wording has it", () => {
  assert.deepEqual([33, 0.0021, 2e-6, 0].map((stop) => g.timeUnit(stop)[1]), ["s", "ms", "us", "s"]);
});

test("words go where they cover none of the rows that they explain", () => {
  const area = { top: 6, row: 28, height: 270 }; // eight rows
  const middle = (row) => 6 + (row + 0.5) * 28;
  const free = (top, high, rows) => rows.every((r) => top >= 6 + (r + 1) * 28 || top + high <= 6 + r * 28);
  const around = (row) => [row - 1, row, row + 1];
  for (const [row, chain] of [[3, []], [1, [2, 3]], [4, [5, 6, 7]], [6, [5, 4]], [0, [0, 1, 2, 3, 4, 5, 6, 7]], [7, [6, 5, 4, 3, 2, 1, 0]]]) {
    const top = g.tipTop(area, middle(row), row, chain, 44);
    assert.ok(free(top, 44, [...chain, ...around(row)]), `${row}: ${top}`);
  }
  assert.ok(g.tipTop(area, middle(1), 1, [0, 1], 44) > middle(2)); // below the pointer, where nothing speaks against it
});

test("a box says what it is, and what it runs together with", () => {
  const data = pack([[0, 0, 0.0123, 0, { of: 0, number: 3 }], [0, 0, 0.0123, 1, { of: 0, number: 1 }], [0, 0.0123, 0.02, 0, { number: 5 }]], 1);
  const meta = { kinds: ["F", "I", "W", "B", "U"], lanes: ["{action}", "the transfer of {action}"], row_rank: [0] };
  data.kind[1] = 3;
  assert.deepEqual(g.describeBox(data, meta, 0), ["0F3", "forward of micro-batch 3 on stage 0 \u00b7 rank 0 \u00b7 starts at 0 s, takes 12.3 ms \u00b7 together with 0B1"]);
  Object.assign(data, { outline_start: Float64Array.of(0, 0, 0.5), outline_end: Float64Array.of(0, 0, 0.512) });
  data.of[2] = 2;
  assert.match(g.describeBox(data, meta, 2)[1], /takes 7.7 ms, predicted 12 ms$/);
  data.lane[2] = 1;
  assert.doesNotMatch(g.describeBox(data, meta, 2)[1], /predicted/);
  assert.equal(g.nameOf(data, meta, 2), "the transfer of 0F5");
});

test("a row of the trace is found among the boxes", () => {
  const data = pack([[0, 0, 1, 0, { of: 4 }], [1, 0, 1, 0, { of: 2 }]], 2);
  assert.equal(g.boxOfRow(data, 4), 0);
  assert.equal(g.boxOfRow(data, 2), 1);
  assert.equal(g.boxOfRow(data, 3), -1);
  assert.equal(g.boxOfRow(data, -1), -1);
  assert.equal(g.boxOfRow(data, 99), -1);
});

test("131,072 boxes are averaged in a few milliseconds", () => {
  const data = pack(many(2048, 64), 64);
  const stop = Math.max(...data.reach.subarray(data.count - 1));
  const into = new Float32Array(4 * 1800);
  const begin = performance.now();
  for (let row = 0; row < 64; row++) {
    into.fill(0);
    g.addCoverage(into, data, data.first[row], data.first[row + 1], [0, stop], 1800, 0.8);
  }
  assert.ok(performance.now() - begin < 500, "a bound that only another order of work can break");
});
