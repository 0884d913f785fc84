// The parts of the split editor: what is made once. Names of layers are only ever set as text.
import { makeElement } from "./element.js";
import { plainText } from "./geometry.js";
import { keepKeys } from "./keys.js";
import { THIN_BAR, splitName, splitTicks } from "./split_geometry.js";

const LETTER = 6; // pixels; where letters are wider, the style sheet cuts the end off

function splitButton(label, title, action) {
  const button = makeElement("button", "pl-button", {}, label);
  button.type = "button";
  button.title = title;
  button.addEventListener("click", action);
  return button;
}

// Everything, in reading order. `named`: the presets with their labels and titles; `actions`: preset(name), undo(), redo(),
// by(name).
export function makeSplitParts(named, actions) {
  const root = makeElement("div", "pipelab pl-split");
  root.addEventListener("keydown", keepKeys);
  root.setAttribute("role", "group");
  const headline = makeElement("div", "pl-headline");
  headline.setAttribute("role", "status");
  const tools = makeElement("div", "pl-tools");
  tools.setAttribute("role", "toolbar");
  tools.setAttribute("aria-label", "split");
  const presets = named.map(([name, label, title]) => splitButton(label, title, () => actions.preset(name)));
  const undo = splitButton("Undo", "Take the last move back (Ctrl+Z)", actions.undo);
  const redo = splitButton("Redo", "Make the move again (Ctrl+Shift+Z)", actions.redo);
  const time = splitButton("Time", "Bars as wide as their layers take long", () => actions.by("time"));
  const bytes = splitButton("Bytes", "Bars as wide as their layers take memory", () => actions.by("bytes"));
  const sized = makeElement("span", "pl-split-group");
  sized.setAttribute("role", "group");
  sized.setAttribute("aria-label", "width of the bars");
  sized.append(makeElement("span", "pl-split-label", {}, "width:"), time, bytes);
  const moved = makeElement("span", "pl-split-group");
  moved.append(undo, redo);
  const preset = makeElement("span", "pl-split-group");
  preset.append(...presets);
  tools.append(preset, moved, sized);
  const head = makeElement("div", "pl-split-head");
  head.append(headline, tools);
  const track = makeElement("div", "pl-split-track");
  const bands = makeElement("div", "pl-split-bands");
  const bars = makeElement("div", "pl-split-bars");
  const names = makeElement("div", "pl-split-names");
  bands.setAttribute("role", "list");
  bands.setAttribute("aria-label", "stages");
  for (const part of [bars, names]) part.setAttribute("aria-hidden", "true"); // stages and sliders say it
  const borders = makeElement("div", "pl-split-borders");
  track.append(bands, bars, names, borders);
  const status = makeElement("div", "pl-split-status");
  const memory = makeElement("div", "pl-split-memory");
  const legend = makeElement("div", "pl-split-legend");
  const alert = makeElement("div", "pl-alert");
  alert.setAttribute("role", "alert");
  const foot = makeElement("div", "pl-split-foot");
  foot.append(legend, memory);
  root.append(head, track, status, foot, alert);
  return { root, headline, presets, undo, redo, time, bytes, track, bands, bars, names, borders, status, memory, legend, alert };
}

// One bar a layer, its parts above one another: its area is what it takes, the colours say of what.
export function fillSplitBars(parts, { names, edges, columns, sizes, paints, room, describe }) {
  const bars = [];
  const labels = [];
  names.forEach((name, layer) => {
    const bar = makeElement("div", "pl-split-bar");
    const width = edges[layer + 1] - edges[layer];
    bar.style.left = `${100 * edges[layer]}%`;
    bar.style.width = `${100 * width}%`;
    if (width * room < THIN_BAR) bar.classList.add("pl-split-thin");
    bar.title = describe(layer);
    let from = 0;
    const stops = columns.map((column, n) => {
      const to = sizes[layer] > 0 ? from + (100 * column[layer]) / sizes[layer] : 0;
      const stop = `${paints[n]} ${from}% ${to}%`;
      from = to;
      return stop;
    });
    if (sizes[layer] > 0) bar.style.backgroundImage = `linear-gradient(to bottom, ${stops.join(", ")})`;
    bars.push(bar);
    const said = splitName(plainText(name, 200), Math.floor((width * room - 2) / LETTER));
    if (!said) return;
    const label = makeElement("div", "pl-split-name", {}, said);
    label.style.left = bar.style.left;
    label.style.width = bar.style.width;
    label.title = bar.title;
    labels.push(label);
  });
  for (const layer of splitTicks(edges, room)) {
    const tick = makeElement("div", "pl-split-tick");
    tick.style.left = `${50 * (edges[layer] + edges[layer + 1])}%`;
    labels.push(tick);
  }
  parts.bars.replaceChildren(...bars);
  parts.names.replaceChildren(...labels);
}

export function fillSplitLegend(parts, entries, paints) {
  parts.legend.replaceChildren(
    ...entries.map(([name], n) => {
      const entry = makeElement("span", "pl-legend-entry pl-split-entry");
      const swatch = makeElement("span", "pl-swatch");
      swatch.style.background = paints[n];
      entry.append(swatch, makeElement("span", "", {}, name));
      return entry;
    }),
  );
}

// A band for each stage and a slider for each border; those that are there are kept, and with them the focus.
export function fitSplitParts(parts, stages, makeBorder) {
  const { bands, borders } = parts;
  while (bands.children.length > stages) bands.lastChild.remove();
  while (bands.children.length < stages) {
    const band = makeElement("div", "pl-split-band");
    band.setAttribute("role", "listitem");
    band.append(...["mark", "stage", "seconds", "bytes"].map((name) => makeElement("span", `pl-split-${name}`)));
    bands.append(band);
  }
  while (borders.children.length > stages - 1) borders.lastChild.remove();
  while (borders.children.length < stages - 1) borders.append(makeBorder(borders.children.length));
}

export function makeSplitBorder(number) {
  const border = makeElement("div", "pl-split-border");
  border.setAttribute("role", "slider");
  border.setAttribute("aria-orientation", "horizontal");
  border.tabIndex = 0;
  border.dataset.border = String(number);
  border.append(makeElement("span", "pl-split-grip"), makeElement("span", "pl-split-flag"));
  return border;
}
