// The split editor: draws the layers, lets hands and keys move the borders, and tells the kernel where they are.
import { asBytes, asSeconds, plainText } from "./geometry.js";
import {
  splitColumns, splitEdges, splitKey, splitLayerAt, splitLayerUnder, splitLimits, splitParts, splitQueued,
  splitRoom, splitSizes, splitStages,
} from "./split_geometry.js";
import { hideStatic } from "./shown.js";
import { fillSplitBars, fillSplitLegend, fitSplitParts, makeSplitBorder, makeSplitParts } from "./split_parts.js";

const SPLIT_HINT = "Drag a border, or give it the focus and use the arrow keys, Page Up and Down, Home and End.";
const PAINT_SHADES = [100, 45]; // percent: weights and activations share a colour, in two shades

// The state of one view in the page. `cuts` is where the borders are drawn, which a hand may be ahead of the kernel with.
class SplitScreen {
  constructor(model, el) {
    this.model = model;
    this.parts = makeSplitParts(model.get("_look").presets, {
      preset: (name) => this.ask({ what: name }),
      undo: () => this.ask({ what: "undo" }),
      redo: () => this.ask({ what: "redo" }),
      by: (name) => {
        model.set("by", name);
        model.save_changes();
      },
    });
    this.token = Math.random().toString(36).slice(2);
    this.number = 0; // of messages and of movements
    this.queue = [];
    this.awaited = null; // the message under way
    this.drag = null; // { border, hand, offset }
    this.hand = ""; // the key that is held
    this.room = 900; // pixels, until it is in the page
    el.append(this.parts.root);
    this.tell("");
    this.load();
  }

  // ---- what comes from the kernel

  load() {
    this.loading = false;
    const { model } = this;
    this.shown = model.get("_shown");
    const names = model.get("_names");
    const columns = model.get("_columns");
    if (names !== this.names || columns !== this.packed) {
      [this.names, this.packed] = [names, columns];
      this.columns = splitColumns(columns, names.length);
      this.sized = null;
    }
    if (this.awaited && this.shown.answered === this.awaited) this.awaited = null;
    if (this.drag && (this.shown.serial !== this.drag.serial || this.shown.cuts.length !== this.cuts.length)) this.letGo();
    this.sendNext();
    const isAhead = this.drag || this.awaited;
    if (!isAhead || this.shown.serial !== this.serial) this.cuts = [...this.shown.cuts];
    this.serial = this.shown.serial;
    this.draw();
  }

  // Several attributes arrive in one message, each with an event of its own; they are taken in once.
  loadSoon() {
    if (this.loading) return;
    this.loading = true;
    queueMicrotask(() => this.loading && !this.ended && this.load());
  }

  // ---- what goes to the kernel: one message under way, of later positions only the newest

  ask(wish) {
    this.queue = splitQueued(this.queue, wish);
    this.sendNext();
  }

  sendNext() {
    if (!this.awaited && this.queue.length) {
      const wish = this.queue.shift();
      this.awaited = `${this.token}:${++this.number}`;
      this.model.send({ ...wish, id: this.awaited });
    }
    this.parts.root.dataset.waiting = String(this.awaited !== null);
  }

  move(border, layer, hand, { rests = false } = {}) {
    const isMoved = this.cuts[border] !== layer;
    if (!isMoved && !rests) return;
    this.cuts[border] = layer;
    this.ask({ what: "move", cuts: [...this.cuts], hand, rests, serial: this.serial });
    if (isMoved) this.drawStages();
  }

  // ---- drawing

  get by() {
    return this.model.get("by");
  }

  paints() {
    const entries = this.model.get("_look")[this.by];
    if (this.by === "time") return entries.map(([, paint]) => paint);
    return entries.map(([, paint], n) => `color-mix(in srgb, ${paint} ${PAINT_SHADES[n]}%, white)`);
  }

  describeLayer(layer) {
    const [f, i, w, weights, kept] = this.columns.map((column) => column[layer]);
    const time = `${asSeconds(f + i + w)} (F ${asSeconds(f)}, I ${asSeconds(i)}, W ${asSeconds(w)})`;
    return [
      `layer ${layer + 1} of ${this.names.length}: ${this.names[layer]}`,
      `${time} · weights and gradients ${asBytes(weights)} · activations ${asBytes(kept)}`,
    ].join("\n");
  }

  draw() {
    const { parts, shown, model } = this;
    if (!this.sized || this.sized.by !== this.by || this.sized.room !== this.room) this.drawLayers();
    const stages = shown.cuts.length + 1;
    const of = `${this.names.length} layers in ${stages} stage${stages > 1 ? "s" : ""}`;
    parts.root.setAttribute("aria-label", `Split of ${of}`);
    if (parts.headline.textContent !== shown.headline) parts.headline.textContent = shown.headline;
    parts.memory.textContent = shown.memory_sentence;
    parts.memory.classList.toggle("pl-split-over", shown.over.length > 0);
    parts.alert.textContent = model.get("message");
    parts.undo.disabled = !shown.can_undo;
    parts.redo.disabled = !shown.can_redo;
    parts.time.setAttribute("aria-pressed", String(this.by === "time"));
    parts.bytes.setAttribute("aria-pressed", String(this.by === "bytes"));
    for (const preset of parts.presets) preset.disabled = stages < 2;
    this.drawStages();
  }

  drawLayers() {
    const { names, by } = this;
    const { room } = this;
    const columns = splitParts(this.columns, by);
    const sizes = splitSizes(columns);
    this.sized = { by, room };
    this.edges = splitEdges(sizes, room);
    const paints = this.paints();
    fillSplitBars(this.parts, {
      names, columns, sizes, paints, room, edges: this.edges, describe: (layer) => this.describeLayer(layer),
    });
    fillSplitLegend(this.parts, this.model.get("_look")[by], paints);
  }

  drawStages() {
    const { parts, cuts, names, shown } = this;
    const stages = splitStages(cuts, names.length);
    fitSplitParts(parts, stages.length, (number) => this.listenTo(makeSplitBorder(number)));
    // Where a hand is ahead of the kernel the borders are where it is, and the numbers those of a moment ago.
    const isOld = cuts.some((cut, n) => cut !== shown.cuts[n]);
    parts.bands.classList.toggle("pl-split-old", isOld);
    parts.root.classList.toggle("pl-split-dense", this.room / stages.length < 40);
    stages.forEach(([first, behind], n) => this.drawBand(parts.bands.children[n], n, first, behind));
    cuts.forEach((cut, n) => this.drawBorder(parts.borders.children[n], n, cut));
  }

  drawBand(band, stage, first, behind) {
    const { edges, names, shown } = this;
    const width = edges[behind] - edges[first];
    const isSlowest = stage === shown.slowest;
    const isOver = shown.over.includes(stage);
    band.style.left = `${100 * edges[first]}%`;
    band.style.width = `${100 * width}%`;
    band.dataset.room = splitRoom(width * this.room);
    band.classList.toggle("pl-split-odd", stage % 2 === 1);
    band.classList.toggle("pl-split-slowest", isSlowest);
    band.classList.toggle("pl-split-over", isOver);
    const [mark, name, seconds, bytes] = band.children;
    const isWide = band.dataset.room === "wide";
    const isNarrow = ["upright", "thin", "none"].includes(band.dataset.room);
    mark.textContent = isSlowest ? (isWide ? "\u25b2 slowest" : "\u25b2") : "";
    name.textContent = isNarrow ? String(stage) : `stage ${stage}`;
    seconds.textContent = shown.seconds[stage] ?? "";
    bytes.textContent = (isOver ? (width * this.room >= 150 ? "\u26a0 over: " : "\u26a0 ") : "") + (shown.memory[stage] ?? "");
    const count = behind - first;
    const to = count > 1 ? ` to ${plainText(names[behind - 1])}` : "";
    const what = `stage ${stage}${isSlowest ? ", the slowest" : ""}: ${plainText(names[first])}${to} (${count} layer${count > 1 ? "s" : ""})`;
    band.title = `${what}\n${shown.seconds[stage] ?? ""} a micro-batch · ${shown.memory[stage] ?? ""}${isOver ? ", over the limit" : ""}`;
    band.setAttribute("aria-label", band.title.replace("\n", ", "));
  }

  drawBorder(border, number, cut) {
    const { names, edges, cuts } = this;
    const [least, most] = splitLimits(cuts, number, names.length);
    border.style.left = `${100 * edges[cut]}%`;
    const said = {
      "aria-label": `stage ${number + 1} begins at`,
      "aria-valuemin": least + 1,
      "aria-valuemax": most + 1,
      "aria-valuenow": cut + 1,
      "aria-valuetext": `stage ${number + 1} begins at ${plainText(names[cut])}, layer ${cut + 1} of ${names.length}`,
      "aria-disabled": least === most,
    };
    for (const [name, value] of Object.entries(said)) border.setAttribute(name, String(value));
    const flag = border.lastElementChild; // seen while the border is at hand
    flag.textContent = `stage ${number + 1} begins at ${plainText(names[cut])}`;
    flag.classList.toggle("pl-split-left", edges[cut] > 0.5);
    border.title = `${said["aria-valuetext"]}\nDrag, or use the arrow keys`;
  }

  resized() {
    const room = Math.round(this.parts.track.clientWidth);
    if (!room || room === this.room) return;
    this.room = room;
    this.draw();
  }

  // ---- hands

  at(event) {
    const bounds = this.parts.track.getBoundingClientRect();
    return (event.clientX - bounds.left) / Math.max(bounds.width, 1);
  }

  listenTo(border) {
    const number = Number(border.dataset.border);
    border.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      border.focus();
      border.setPointerCapture(event.pointerId);
      const hand = `${this.token}:${++this.number}`;
      this.drag = { border: number, hand, serial: this.serial, offset: this.at(event) - this.edges[this.cuts[number]] };
      border.classList.add("pl-split-held");
    });
    border.addEventListener("pointermove", (event) => {
      if (!this.drag || this.drag.border !== number) return;
      const limits = splitLimits(this.cuts, number, this.names.length);
      this.move(number, splitLayerAt(this.edges, this.at(event) - this.drag.offset, limits), this.drag.hand);
    });
    const end = () => {
      if (!this.drag || this.drag.border !== number) return;
      const { hand } = this.drag;
      this.letGo();
      this.move(number, this.cuts[number], hand, { rests: true });
    };
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) border.addEventListener(name, end);
    border.addEventListener("keydown", (event) => this.pressed(event, number));
    border.addEventListener("keyup", () => (this.hand = ""));
    border.addEventListener("blur", () => (this.hand = ""));
    return border;
  }

  letGo() {
    this.parts.borders.children[this.drag.border]?.classList.remove("pl-split-held");
    this.drag = null;
  }

  pressed(event, number) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const limits = splitLimits(this.cuts, number, this.names.length);
    const layer = splitKey(event.key, this.cuts[number], limits);
    if (layer === null) return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat || !this.hand) this.hand = `${this.token}:${++this.number}`; // a key held down is one movement
    this.move(number, layer, this.hand);
  }

  shortcut(event) {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    const key = event.key.toLowerCase();
    const what = key === "y" || (key === "z" && event.shiftKey) ? "redo" : key === "z" ? "undo" : "";
    if (!what) return;
    event.preventDefault();
    event.stopPropagation();
    this.ask({ what });
  }

  // A line below says what the mouse is on, or which border has the focus: some bars are too narrow for any word.
  hover(event) {
    const layer = splitLayerUnder(this.edges, this.at(event));
    this.tell(this.describeLayer(layer));
  }

  tell(words) {
    const at = words.lastIndexOf("\n"); // a name may have lines of its own
    const said = words ? `${plainText(words.slice(0, at), 90)} \u00b7 ${words.slice(at + 1)}` : SPLIT_HINT;
    if (this.parts.status.textContent !== said) this.parts.status.textContent = said;
  }

  // ---- life

  listen() {
    const { parts, model } = this;
    const heard = {
      "change:_shown": () => this.loadSoon(), "change:_names": () => this.loadSoon(), "change:_columns": () => this.loadSoon(),
      "change:by": () => this.draw(), "change:message": () => this.draw(),
    };
    for (const [event, action] of Object.entries(heard)) model.on(event, action);
    parts.root.addEventListener("keydown", (event) => this.shortcut(event));
    for (const part of [parts.bars, parts.names]) {
      part.addEventListener("pointermove", (event) => this.hover(event));
      part.addEventListener("pointerleave", () => this.tell(""));
    }
    parts.bands.addEventListener("pointermove", (event) => this.tell(event.target.closest(".pl-split-band")?.title ?? ""));
    parts.bands.addEventListener("pointerleave", () => this.tell(""));
    const resize = new ResizeObserver(() => this.resized());
    resize.observe(parts.track);
    return () => {
      this.ended = true;
      for (const [event, action] of Object.entries(heard)) model.off(event, action);
      resize.disconnect();
    };
  }
}

function render({ model, el }) {
  const screen = new SplitScreen(model, el);
  const stopListening = screen.listen();
  const showStatic = hideStatic(el, model);
  return () => {
    stopListening();
    showStatic();
  };
}

export default { render };
