// The live timeline: takes the columns from the kernel, draws them, and asks the kernel why where somebody points.
import {
  acrossRows, alongRow, boxOfRow, describeBox, hitBox, layoutOf, leastSpan, loadColumns, nearestInRow, panned, plainText,
  revealed, rowAt, shownOf, spanOf, xToTime, zoomed,
} from "./geometry.js";
import { hideStatic } from "./shown.js";
import { CLOSER, handsOf } from "./timeline_hands.js";
import { ASK_AFTER, TimelineHover } from "./timeline_hover.js";
import { paintOver } from "./timeline_over.js";
import { paintBase } from "./timeline_paint.js";
import { HINT, fillLegend, fillTitle, makeParts } from "./timeline_parts.js";
import { FONT, Sheet, readTheme } from "./timeline_sheet.js";

// The state of one view in the page: a widget shown twice has two, each with its own canvas.
class TimelineScreen {
  constructor(model, el) {
    this.model = model;
    this.parts = makeParts({
      zoomIn: () => this.zoom(CLOSER),
      zoomOut: () => this.zoom(1 / CLOSER),
      all: () => this.showAll(),
      path: () => this.toggle("critical_path"),
      memory: () => this.toggle("memory"),
    });
    this.base = new Sheet(this.parts.canvas);
    this.top = new Sheet(this.parts.over);
    this.followed = { box: -1, before: [], after: [], words: "" };
    this.path = null; // { serial, rows, sentence, words } as the kernel answered
    this.askedPath = -1;
    this.number = 0; // of the last question; older answers are dropped
    this.frames = { base: 0, over: 0, load: false };
    this.timers = {};
    this.hover = new TimelineHover(this);
    this.width = 0;
    this.parts.hint.textContent = HINT;
    el.append(this.parts.root);
    this.theme = null; // unknown until the view is in the page
    this.load();
  }

  // ---- what comes from the kernel

  load() {
    this.frames.load = false;
    const { model } = this;
    const kept = this.followed.box >= 0 && this.data ? this.data.of[this.followed.box] : -1;
    this.meta = model.get("_meta");
    this.data = loadColumns(model.get("_columns"), this.meta);
    this.labels = this.meta.rows.map((label) => plainText(label, 20));
    this.hover.forget();
    this.measure();
    this.followed = { box: -1, before: [], after: [], words: "" };
    this.select(boxOfRow(this.data, model.get("selected")), { tell: false, again: kept });
    this.say();
    this.refresh();
    this.askForPath();
  }

  // Several attributes arrive in one message, each with an event of its own; they are taken in once.
  loadSoon() {
    if (this.frames.load) return;
    this.frames.load = true;
    queueMicrotask(() => this.frames.load && !this.ended && this.load());
  }

  get stop() {
    return Math.max(this.meta.stop, this.model.get("time_stop") || 0) || 1;
  }

  get least() {
    return leastSpan(this.data, this.stop);
  }

  measure() {
    const { meta } = this;
    const width = this.width || this.parts.stage.clientWidth || 800;
    const ctx = this.base.ctx;
    ctx.font = `12px ${FONT}`;
    const widest = Math.max(40, ...this.labels.map((label) => ctx.measureText(label).width));
    const strips = meta.memory && this.model.get("memory") ? meta.memory.labels.length : 0;
    const peaks = strips ? Math.max(...meta.memory.peaks.map((peak) => ctx.measureText(`peak ${peak}`).width)) + 12 : 12;
    this.area = layoutOf({
      rows: meta.rows.length, strips, width, height: this.model.get("height") || 0,
      left: Math.min(widest + 14, 150), right: peaks,
    });
    this.shown = shownOf(this.model.get("span"), this.stop, this.least);
  }

  // Title, legend, buttons, alternative text.
  say() {
    const { meta, model, parts } = this;
    const own = model.get("title");
    const path = this.pathShown();
    const lines = own ? [plainText(own, 110)] : [...meta.title];
    if (path) lines.push(path.sentence);
    fillTitle(parts, lines, meta.overrun);
    fillLegend(parts, meta, { path: !!path });
    parts.root.classList.toggle("pl-compact", model.get("compact"));
    parts.path.setAttribute("aria-pressed", String(model.get("critical_path")));
    parts.memory.setAttribute("aria-pressed", String(model.get("memory")));
    parts.canvas.setAttribute("aria-label", path ? `${meta.text} ${path.words}` : meta.text);
    parts.alert.textContent = model.get("message");
  }

  pathShown() {
    const { path, meta } = this;
    return this.model.get("critical_path") && path && path.serial === meta.serial ? path : null;
  }

  askForPath() {
    const { serial } = this.meta;
    if (!this.model.get("critical_path") || this.pathShown() || this.askedPath === serial) return;
    this.askedPath = serial;
    this.model.send({ what: "path", id: 0, serial });
  }

  // Ask the kernel once the hand rests; returns the number that the answer will have.
  ask(what, about) {
    const id = ++this.number;
    const question = { what, id, serial: this.meta.serial, ...about };
    this.later(what, ASK_AFTER, () => this.model.send(question));
    return id;
  }

  answered(answer) {
    if (!answer || answer.serial !== this.meta.serial) return;
    if (answer.what === "path" && !answer.error) {
      this.path = answer;
      this.say();
      this.refresh();
    } else if (answer.what === "why" && !answer.error) {
      this.hover.answered(answer);
    } else if (answer.what === "links" && answer.id === this.askedLinks && this.followed.box >= 0 && !answer.error) {
      Object.assign(this.followed, { before: this.boxesOf(answer.before), after: this.boxesOf(answer.after) });
      this.tellSelected(answer.sentence);
      this.refreshOver();
    }
  }

  boxesOf(rows) {
    return rows.map((row) => boxOfRow(this.data, row)).filter((box) => box >= 0);
  }

  // ---- drawing, once a frame

  look() {
    const { data, meta, area, shown, stop, theme, labels } = this;
    const path = this.pathShown();
    const box = this.followed.box;
    return { data, meta, area, shown, stop, theme, labels, number: box >= 0 ? data.number[box] : -1, path: path ? path.rows : null };
  }

  refresh() {
    if (!this.frames.base) this.frames.base = requestAnimationFrame(() => this.paint());
  }

  refreshOver() {
    if (!this.frames.over && !this.frames.base) this.frames.over = requestAnimationFrame(() => this.paintTop());
  }

  paint() {
    this.frames.base = 0;
    if (this.ended || !this.parts.root.isConnected) return; // its width is told as soon as it is in the page
    this.theme = this.theme || readTheme(this.parts.root);
    const before = performance.now();
    paintBase(this.base, this.look());
    this.paintTop();
    const { dataset } = this.parts.canvas;
    dataset.paintMs = (performance.now() - before).toFixed(2);
    dataset.paints = String(Number(dataset.paints || 0) + 1);
    dataset.serial = String(this.meta.serial);
    const { left, plot, top, row, rows } = this.area;
    Object.assign(dataset, { left, plot, top, row, rows, from: this.shown[0], to: this.shown[1] }); // where things are
  }

  paintTop() {
    cancelAnimationFrame(this.frames.over);
    this.frames.over = 0;
    if (this.ended || !this.theme) return;
    const { hover, followed } = this;
    paintOver(this.top, this.look(), {
      box: hover.box, gap: hover.gap, chain: hover.chain,
      selected: followed.box, before: followed.before, after: followed.after,
      moment: this.model.get("moment"),
    });
  }

  resized(width) {
    if (!width || width === this.width) return;
    this.width = width;
    this.measure();
    this.refresh();
  }

  // ---- what part of the axis is shown

  setShown(shown) {
    this.shown = shown;
    this.hover.nothing(); // something else lies under the pointer now
    this.model.set("span", spanOf(shown, this.stop)); // views linked to this one follow at once
    this.model.save_changes(); // one message is under way at a time, so the kernel gets as many as it can take
    this.refresh();
  }

  zoom(factor, at = this.middle()) {
    this.setShown(zoomed(this.shown, factor, at, this.stop, this.least));
  }

  // What keys and buttons zoom to: the selected action where it is in sight.
  middle() {
    const { box } = this.followed;
    const time = box < 0 ? -1 : (this.data.start[box] + this.data.end[box]) / 2;
    return time >= this.shown[0] && time <= this.shown[1] ? time : (this.shown[0] + this.shown[1]) / 2;
  }

  pan(share) {
    this.setShown(panned(this.shown, share * (this.shown[1] - this.shown[0]), this.stop));
  }

  showAll() {
    this.setShown([0, this.stop]);
  }

  toggle(name) {
    this.model.set(name, !this.model.get(name));
    this.model.save_changes();
  }

  later(name, wait, action) {
    clearTimeout(this.timers[name]);
    this.timers[name] = setTimeout(() => !this.ended && action(), wait);
  }

  // ---- pointing

  point(event) {
    const bounds = this.parts.canvas.getBoundingClientRect();
    const x = event.clientX - bounds.left;
    const y = event.clientY - bounds.top;
    const { area } = this;
    const row = x >= area.left && x <= area.left + area.plot ? rowAt(y, area) : -1;
    const time = xToTime(x, this.shown, area);
    const offset = row < 0 ? 0 : (y - area.top) / area.row - row - 0.5;
    const slack = (1.5 / area.plot) * (this.shown[1] - this.shown[0]);
    return { x, y, row, time, box: hitBox(this.data, row, time, offset, slack, 0.5 - this.meta.half) };
  }

  // ---- selecting

  select(box, { tell = true, again = -1 } = {}) {
    const row = box >= 0 ? this.data.of[box] : -1;
    const words = again >= 0 && again === row ? this.followed.words : "";
    this.followed = { box, before: [], after: [], words };
    if (tell) {
      this.model.set("selected", row);
      this.model.save_changes();
    }
    if (box >= 0) this.askedLinks = this.ask("links", { row });
    else clearTimeout(this.timers.links);
    this.tellSelected("");
    this.refresh();
  }

  tellSelected(sentence) {
    const { box } = this.followed;
    const words = box < 0 ? "" : [describeBox(this.data, this.meta, box).join(": "), sentence].filter(Boolean).join(". ");
    if (this.parts.status.textContent !== words) this.parts.status.textContent = words;
  }

  step(along, across) {
    const { data } = this;
    let box = this.followed.box;
    if (box < 0) return false;
    box = along ? alongRow(data, box, along) : acrossRows(data, box, across);
    this.setShown(revealed(this.shown, data.start[box], data.end[box], this.stop));
    this.select(box);
    return true;
  }

  // Enter: what the pointer is on, else what lies in the middle of the first row that has anything.
  selectHere() {
    if (this.hover.box >= 0) return this.select(this.hover.box);
    if (this.followed.box >= 0) return undefined;
    const middle = (this.shown[0] + this.shown[1]) / 2;
    for (let row = 0; row < this.area.rows; row++) {
      const box = nearestInRow(this.data, row, middle);
      if (box >= 0) return this.select(box);
    }
    return undefined;
  }

  letGo() {
    if (this.followed.box < 0) return false;
    this.select(-1);
    return true;
  }

  // ---- life

  listen() {
    const { canvas } = this.parts;
    for (const [name, action] of Object.entries(handsOf(this))) {
      canvas.addEventListener(name, action, { passive: false });
    }
    const again = () => {
      this.measure();
      this.say();
      this.refresh();
    };
    const heard = {
      "change:_meta": () => this.loadSoon(), "change:_columns": () => this.loadSoon(),
      "change:span": again, "change:time_stop": again, "change:height": again, "change:memory": again,
      "change:title": again, "change:compact": again, "change:message": () => this.say(),
      "change:critical_path": () => {
        this.askForPath();
        again();
      },
      "change:selected": () => this.selectedElsewhere(),
      "change:moment": () => this.refreshOver(),
      "msg:custom": (answer) => this.answered(answer),
    };
    for (const [event, action] of Object.entries(heard)) this.model.on(event, action);
    const resize = new ResizeObserver(() => this.resized(this.parts.stage.clientWidth));
    resize.observe(this.parts.stage);
    const themed = new MutationObserver(() => this.later("theme", 50, () => this.themeChanged()));
    themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
    return () => {
      this.ended = true;
      for (const [event, action] of Object.entries(heard)) this.model.off(event, action);
      resize.disconnect();
      themed.disconnect();
      Object.values(this.timers).forEach(clearTimeout);
      cancelAnimationFrame(this.frames.base);
      cancelAnimationFrame(this.frames.over);
    };
  }

  selectedElsewhere() {
    const row = this.model.get("selected");
    const mine = this.followed.box >= 0 ? this.data.of[this.followed.box] : -1;
    if (row !== mine) this.select(boxOfRow(this.data, row), { tell: false });
  }

  themeChanged() {
    this.theme = null;
    this.base.hatch = null;
    this.refresh();
  }
}

function render({ model, el }) {
  const screen = new TimelineScreen(model, el);
  const stopListening = screen.listen();
  const showStatic = hideStatic(el, model);
  return () => {
    stopListening();
    showStatic();
  };
}

export default { render };
