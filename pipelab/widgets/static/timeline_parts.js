// The parts of a timeline besides its canvas: title, buttons, legend, what is said. Text is only ever set as text.
import { makeElement } from "./element.js";
import { keepKeys } from "./keys.js";

function partButton(label, title, action, pressed) {
  const button = makeElement("button", "pl-button", {}, label);
  button.type = "button";
  button.title = title;
  if (pressed !== undefined) button.setAttribute("aria-pressed", String(pressed));
  else button.setAttribute("aria-label", title);
  button.addEventListener("click", action);
  return button;
}

// Everything around the canvas, in reading order. `actions` is what the buttons do.
export function makeParts(actions) {
  const root = makeElement("div", "pipelab pl-timeline");
  root.addEventListener("keydown", keepKeys); // JupyterLab's m would make a heading of the cell
  const title = makeElement("div", "pl-title");
  const tools = makeElement("div", "pl-tools");
  tools.setAttribute("role", "toolbar");
  tools.setAttribute("aria-label", "timeline");
  const path = partButton("Critical path", "Mark the actions that make the step as long as it is (c)", actions.path, false);
  const memory = partButton("Memory", "Show what each rank holds over time (m)", actions.memory, false);
  tools.append(
    partButton("\u2212", "Zoom out (-)", actions.zoomOut),
    partButton("+", "Zoom in (+)", actions.zoomIn),
    partButton("All", "Show all of the step (0)", actions.all),
    path,
    memory,
  );
  const head = makeElement("div", "pl-head");
  head.append(title, tools);
  const stage = makeElement("div", "pl-stage");
  const canvas = makeElement("canvas", "pl-canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-description", HINT);
  const over = makeElement("canvas", "pl-over");
  over.setAttribute("aria-hidden", "true");
  const tip = makeElement("div", "pl-tip");
  tip.setAttribute("aria-hidden", "true"); // the same words are read from the status line by those who use keys
  stage.append(canvas, over, tip);
  const alert = makeElement("div", "pl-alert");
  alert.setAttribute("role", "alert");
  const status = makeElement("div", "pl-status");
  status.setAttribute("role", "status");
  status.setAttribute("aria-live", "polite");
  const hint = makeElement("div", "pl-hint");
  const legend = makeElement("div", "pl-legend");
  root.append(head, stage, legend, status, hint, alert);
  return { root, title, path, memory, stage, canvas, over, tip, alert, status, hint, legend };
}

export const HINT =
  "Hover over an action or a gap; click an action to follow its micro-batch. With the focus here: wheel or + and \u2212 zoom, " +
  "arrows move, Enter selects, Escape lets go, 0 shows all, c critical path, m memory.";

export function fillTitle(parts, lines, warning) {
  const title = lines.map((line, n) => makeElement("div", n ? "pl-subtitle" : "pl-headline", {}, unbroken(line)));
  if (warning) title.push(makeElement("div", "pl-overrun", {}, `\u25bc ${unbroken(warning)}`));
  parts.title.replaceChildren(...title);
}

// A number and its unit stay on one line.
function unbroken(line) {
  return line.replace(/(\d) (?=%|s\b|ms\b|us\b)/g, "$1\u00a0").replace(/(bubble_fraction|takes|at) (?=\d)/g, "$1\u00a0");
}

// What the colours mean; only those that occur.
export function fillLegend(parts, meta, { path }) {
  const entries = meta.legend.map(([name, colour]) => legendEntry(name, (swatch) => (swatch.style.background = colour)));
  entries.push(legendEntry("idle", (swatch) => swatch.classList.add("pl-swatch-idle")));
  if (meta.underlined) entries.push(legendEntry("underlined: a rank's later stage", null));
  if (meta.predicted) entries.push(legendEntry("outline: predicted", (swatch) => swatch.classList.add("pl-swatch-outline")));
  if (path) {
    entries.push(legendEntry("critical path", (swatch) => {
      swatch.classList.add("pl-swatch-line");
      swatch.style.background = meta.colours.path;
      swatch.style.borderColor = meta.colours.edge;
    }));
  }
  if (meta.memory) entries.push(legendEntry("memory", (swatch) => (swatch.style.background = meta.colours.memory)));
  parts.legend.replaceChildren(...entries);
}

function legendEntry(name, paint) {
  const entry = makeElement("span", "pl-legend-entry");
  if (paint) {
    const swatch = makeElement("span", "pl-swatch");
    paint(swatch);
    entry.append(swatch);
  }
  entry.append(document.createTextNode(name));
  return entry;
}

// Words beside the pointer: a name or "", and what there is to say. `topOf` tells from their height where they go.
export function showTip(parts, [name, words], x, topOf) {
  const { tip, stage } = parts;
  tip.replaceChildren(makeElement("div", "pl-tip-name", {}, name), makeElement("div", "", {}, unbroken(words)));
  tip.style.visibility = "visible";
  tip.style.maxWidth = `${Math.min(440, Math.max(160, stage.clientWidth - 16))}px`;
  const right = stage.clientWidth - tip.offsetWidth - 4;
  tip.style.left = `${Math.max(0, Math.min(x + 14, right))}px`;
  tip.style.top = `${topOf(tip.offsetHeight)}px`;
}

export function hideTip(parts) {
  parts.tip.style.visibility = "hidden";
}
