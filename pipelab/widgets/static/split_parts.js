// The parts of the split editor: what is made once. Names of layers are only ever set as text.
import { plainText } from "./geometry.js";

const SPLIT_PRESETS = [
  ["equal_time", "Equal time", "Move the borders to where the slowest stage is fastest"],
  ["equal_count", "Equal count", "Give all stages as many layers"],
  ["equal_parameters", "Equal parameters", "Move the borders to where the stage with the most parameters has as few as can be"],
];

const LETTER = 6; // pixels; where letters are wider, the style sheet cuts the end off

function splitElement(tag, className, text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

// Keys pressed here are ours, not commands of the notebook. JupyterLab asks the element that has the focus, and its
// parents only where the shortcut's selector has not matched before.
function keepKeys(element) {
  element.dataset.lmSuppressShortcuts = "true";
  return element;
}

function splitButton(label, title, action) {
  const button = splitElement("button", "pl-button", label);
  button.type = "button";
  button.title = title;
  button.addEventListener("click", action);
  return keepKeys(button);
}

// Everything, in reading order. `actions`: preset(name), undo(), redo(), by(name).
export function makeSplitParts(actions) {
  const root = splitElement("div", "pipelab pl-split");
  root.setAttribute("role", "group");
  const headline = splitElement("div", "pl-headline");
  headline.setAttribute("role", "status");
  const tools = splitElement("div", "pl-tools");
  tools.setAttribute("role", "toolbar");
  tools.setAttribute("aria-label", "split");
  const presets = SPLIT_PRESETS.map(([name, label, title]) => splitButton(label, title, () => actions.preset(name)));
  const undo = splitButton("Undo", "Take the last move back (Ctrl+Z)", actions.undo);
  const redo = splitButton("Redo", "Make the move again (Ctrl+Shift+Z)", actions.redo);
  const time = splitButton("Time", "Bars as wide as their layers take long", () => actions.by("time"));
  const bytes = splitButton("Bytes", "Bars as wide as their layers take memory", () => actions.by("bytes"));
  const sized = splitElement("span", "pl-split-group");
  sized.setAttribute("role", "group");
  sized.setAttribute("aria-label", "width of the bars");
  sized.append(splitElement("span", "pl-split-label", "width:"), time, bytes);
  const moved = splitElement("span", "pl-split-group");
  moved.append(undo, redo);
  const preset = splitElement("span", "pl-split-group");
  preset.append(...presets);
  tools.append(preset, moved, sized);
  const head = splitElement("div", "pl-split-head");
  head.append(headline, tools);
  const track = splitElement("div", "pl-split-track");
  const bands = splitElement("div", "pl-split-bands");
  const bars = splitElement("div", "pl-split-bars");
  const names = splitElement("div", "pl-split-names");
  bands.setAttribute("role", "list");
  bands.setAttribute("aria-label", "stages");
  for (const part of [bars, names]) part.setAttribute("aria-hidden", "true"); // stages and sliders say it
  const borders = splitElement("div", "pl-split-borders");
  track.append(bands, bars, names, borders);
  const status = splitElement("div", "pl-split-status");
  const memory = splitElement("div", "pl-split-memory");
  const legend = splitElement("div", "pl-split-legend");
  const alert = splitElement("div", "pl-alert");
  alert.setAttribute("role", "alert");
  const foot = splitElement("div", "pl-split-foot");
  foot.append(legend, memory);
  root.append(head, track, status, foot, alert);
  return { root, headline, presets, undo, redo, time, bytes, track, bands, bars, names, borders, status, memory, legend, alert };
}

// One bar a layer, its parts above one another: its area is what it takes, the colours say of what.
export function fillSplitBars(parts, { names, edges, columns, sizes, paints, room, describe }) {
  const bars = [];
  const labels = [];
  names.forEach((name, layer) => {
    const bar = splitElement("div", "pl-split-bar");
    const width = edges[layer + 1] - edges[layer];
    bar.style.left = `${100 * edges[layer]}%`;
    bar.style.width = `${100 * width}%`;
    if (width * room < 6) bar.classList.add("pl-split-thin"); // an edge would hide its colours
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
    if (width * room < 26) return; // not even a few letters
    // The middle is left out, as what tells layers apart mostly stands at the end.
    const label = splitElement("div", "pl-split-name", plainText(name, Math.floor((width * room - 4) / LETTER)));
    label.style.left = bar.style.left;
    label.style.width = bar.style.width;
    label.title = bar.title;
    labels.push(label);
  });
  parts.bars.replaceChildren(...bars);
  parts.names.replaceChildren(...labels);
}

export function fillSplitLegend(parts, entries, paints) {
  parts.legend.replaceChildren(
    ...entries.map(([name], n) => {
      const entry = splitElement("span", "pl-split-entry");
      const swatch = splitElement("span", "pl-split-swatch");
      swatch.style.background = paints[n];
      entry.append(swatch, splitElement("span", "", name));
      return entry;
    }),
  );
}

// A band for each stage and a slider for each border; those that are there are kept, and with them the focus.
export function fitSplitParts(parts, stages, makeBorder) {
  const { bands, borders } = parts;
  while (bands.children.length > stages) bands.lastChild.remove();
  while (bands.children.length < stages) {
    const band = splitElement("div", "pl-split-band");
    band.setAttribute("role", "listitem");
    band.append(...["mark", "stage", "seconds", "bytes"].map((name) => splitElement("span", `pl-split-${name}`)));
    bands.append(band);
  }
  while (borders.children.length > stages - 1) borders.lastChild.remove();
  while (borders.children.length < stages - 1) borders.append(makeBorder(borders.children.length));
}

export function makeSplitBorder(number) {
  const border = splitElement("div", "pl-split-border");
  border.setAttribute("role", "slider");
  border.setAttribute("aria-orientation", "horizontal");
  border.tabIndex = 0;
  border.dataset.border = String(number);
  border.append(splitElement("span", "pl-split-grip"));
  return keepKeys(border);
}
