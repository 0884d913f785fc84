// The geometry of the split editor, without a page: node --test tests/widgets/js/split_geometry.test.mjs
import assert from "node:assert/strict";
import test from "node:test";

import * as g from "./split_geometry.under_test.mjs";

function near(found, expected) {
  assert.equal(found.length, expected.length);
  found.forEach((value, n) => assert.ok(Math.abs(value - expected[n]) < 1e-9, `${found} is not ${expected}`));
}

const widths = (edges) => edges.slice(1).map((edge, n) => edge - edges[n]);

test("bars are as wide as their layers take", () => {
  near(g.splitEdges([1, 2, 1], 1000), [0, 0.25, 0.75, 1]);
});

test("no bar is narrower than the least, and what the others give up is shared by size", () => {
  const found = widths(g.splitEdges([0, 1, 3, 0.001], 1000, 10));
  near(found, [0.01, 0.98 / 4, (0.98 * 3) / 4, 0.01]);
});

test("a bar that becomes too narrow only once others are widened is widened too", () => {
  // 1 % of the sum is 10 pixels, but no more than that once the two of nothing have taken their 20.
  const found = widths(g.splitEdges([0, 0, 1, 99], 1000, 10));
  near(found, [0.01, 0.01, 0.01, 0.97]);
});

test("widths sum to all of the room for any sizes and any room", () => {
  for (const count of [1, 2, 7, 400]) {
    for (const room of [1, 30, 900]) {
      for (const pattern of [(n) => n % 3, () => 0, (n) => (n === 0 ? 1e9 : 1e-9), (n) => n * n]) {
        const edges = g.splitEdges(Array.from({ length: count }, (_, n) => pattern(n)), room);
        assert.equal(edges.length, count + 1);
        assert.equal(edges[0], 0);
        assert.ok(Math.abs(edges[count] - 1) < 1e-12);
        const least = Math.min(g.LEAST_BAR / room, 0.5 / count);
        assert.ok(widths(edges).every((width) => width > least - 1e-9), `${count} in ${room}`);
      }
    }
  }
});

test("a larger layer is never narrower than a smaller one", () => {
  const sizes = [0, 1e-6, 0.5, 1, 7, 7.5, 40];
  const found = widths(g.splitEdges(sizes, 300));
  for (let n = 1; n < found.length; n++) assert.ok(found[n] >= found[n - 1] - 1e-12);
});

test("a border may go where no stage is left without layers", () => {
  assert.deepEqual(g.splitLimits([3, 6, 9], 0, 12), [1, 5]);
  assert.deepEqual(g.splitLimits([3, 6, 9], 1, 12), [4, 8]);
  assert.deepEqual(g.splitLimits([3, 6, 9], 2, 12), [7, 11]);
  assert.deepEqual(g.splitLimits([1], 0, 2), [1, 1]);
});

test("a dragged border snaps to the nearest edge that it may stand at", () => {
  const edges = g.splitEdges([1, 1, 1, 1, 6], 1000, 0);
  const brute = (at, [least, most]) => {
    let best = least;
    for (let layer = least; layer <= most; layer++) if (Math.abs(edges[layer] - at) < Math.abs(edges[best] - at) - 1e-12) best = layer;
    return best;
  };
  for (const limits of [[1, 4], [2, 3], [2, 2]]) {
    for (let at = -0.2; at < 1.2; at += 0.0137) assert.equal(g.splitLayerAt(edges, at, limits), brute(at, limits), `${at} in ${limits}`);
  }
});

test("the layer under the mouse is the one whose bar is there", () => {
  const edges = [0, 0.1, 0.2, 1];
  assert.deepEqual([-1, 0, 0.0999, 0.1, 0.5, 1, 2].map((at) => g.splitLayerUnder(edges, at)), [0, 0, 0, 1, 2, 2, 2]);
});

test("keys move as those of a slider do, no further than the limits", () => {
  const all = ["ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown", "PageUp", "PageDown", "Home", "End"];
  assert.deepEqual(all.map((key) => g.splitKey(key, 10, [2, 30])), [11, 11, 9, 9, 15, 5, 2, 30]);
  assert.deepEqual(all.map((key) => g.splitKey(key, 10, [10, 10])), Array(8).fill(10));
  assert.equal(g.splitKey("a", 10, [2, 30]), null);
  assert.equal(g.splitKey("toString", 10, [2, 30]), null);
});

test("a short name keeps what tells layers apart, with one ellipsis", () => {
  const said = (name, letters) => g.splitName(name, letters);
  assert.equal(said("blocks.4", 8), "blocks.4");
  assert.deepEqual([3, 2, 1].map((letters) => said("blocks.4", letters)), ["\u20264", "\u20264", "4"]);
  assert.deepEqual([3, 2, 1].map((letters) => said("blocks.10", letters)), ["\u202610", "10", ""]);
  assert.equal(said("transformer.blocks.4.attn", 9), "\u20264.attn");
  assert.equal(said("embedding", 5), "embe\u2026");
  assert.equal(said("embedding", 2), "");
  for (let letters = 0; letters < 20; letters++) {
    const name = said("a.long.one.12", letters);
    assert.ok(name.length <= letters && name.split("\u2026").length <= 2);
  }
});

test("a few thin bars get ticks, many none", () => {
  assert.deepEqual(g.splitTicks([0, 0.5, 0.501, 1], 900), [1]);
  assert.deepEqual(g.splitTicks([0, 0.5, 1], 900), []);
  assert.deepEqual(g.splitTicks(Array.from({ length: 401 }, (_, n) => n / 400), 900), []);
});

test("stages are the runs of layers between borders", () => {
  assert.deepEqual(g.splitStages([2, 5], 7), [[0, 2], [2, 5], [5, 7]]);
  assert.deepEqual(g.splitStages([], 7), [[0, 7]]);
});

test("of one hand's positions the last waits; what others asked for keeps its place", () => {
  const move = (hand, cuts) => ({ what: "move", hand, cuts });
  let queue = [];
  for (const wish of [move("a", [1]), move("a", [2]), { what: "undo" }, move("a", [3]), move("b", [4]), move("b", [5])]) {
    queue = g.splitQueued(queue, wish);
  }
  assert.deepEqual(queue, [move("a", [2]), { what: "undo" }, move("a", [3]), move("b", [5])]);
});

test("columns are read from the middle of a larger buffer", () => {
  const numbers = new Float32Array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  const bytes = Buffer.concat([Buffer.from([0, 0, 0]), Buffer.from(numbers.buffer)]);
  const columns = g.splitColumns(new DataView(bytes.buffer, bytes.byteOffset + 3, 40), 2);
  assert.deepEqual(columns.map((column) => [...column]), [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]);
  assert.deepEqual(g.splitSizes(g.splitParts(columns, "time")), [9, 12]);
  assert.deepEqual(g.splitSizes(g.splitParts(columns, "bytes")), [16, 18]);
});
