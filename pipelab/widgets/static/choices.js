import { keepKeys } from "./keys.js";

// The sizes of a schedule: a menu, and for each number a slider with a field to type into. Native elements, so that
// keys, screen readers and phones work as everywhere.
const CHOICES_NUMBERS = [
  ["num_ranks", "ranks", "How many devices, each with its own stages"],
  ["num_microbatches", "micro-batches", "Into how many parts the whole batch is cut"],
  ["stages_per_rank", "stages per rank", "How many stages each rank holds"],
];

function choicesElement(tag, className, attributes = {}) {
  const element = document.createElement(tag);
  element.className = className;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function choicesMenu(model) {
  const label = choicesElement("label", "pl-choice");
  const select = choicesElement("select", "pl-select", { "aria-label": "schedule", title: "The order of the actions" });
  label.append("schedule", select);

  function show() {
    const names = model.get("_menu");
    if (select.options.length !== names.length || names.some((name, k) => select.options[k].value !== name)) {
      select.replaceChildren(...names.map((name) => new Option(name, name)));
    }
    select.value = model.get("schedule");
  }

  select.addEventListener("change", () => {
    model.set("schedule", select.value);
    model.save_changes();
  });
  return { element: label, show, of: ["schedule", "_menu"] };
}

function choicesNumber(model, name, text, hint) {
  const group = choicesElement("span", "pl-choice", { role: "group", "aria-label": text, title: hint });
  const caption = choicesElement("span", "", { "aria-hidden": "true" });
  caption.textContent = text;
  const range = choicesElement("input", "pl-range", { type: "range", step: "1", "aria-label": text });
  const typed = choicesElement("input", "pl-typed", { type: "number", step: "1", "aria-label": `${text}, as a number` });
  group.append(caption, range, typed);

  function show() {
    const [least, most] = model.get("_limits")[name] ?? [1, 1];
    const value = model.get(name);
    range.min = least; // the ends first: a value beyond them would be clamped
    range.max = most;
    range.value = value;
    if (document.activeElement !== typed || Number(typed.value) !== value) typed.value = value;
    group.style.display = least === most ? "none" : "";
  }

  // ipywidgets sends one message at a time and, while the kernel works on it, keeps only the newest value: a hand that
  // moves faster than the kernel draws leaves no queue behind.
  function wish(value) {
    if (!Number.isInteger(value) || value === model.get(name)) return;
    model.set(name, value);
    model.save_changes();
  }

  range.addEventListener("input", () => {
    typed.value = range.value;
    wish(Number(range.value));
  });
  typed.addEventListener("change", () => {
    const text = typed.value;
    if (text !== "" && Number.isInteger(Number(text))) return wish(Number(text));
    model.send({ what: "typed", name, text }); // the kernel has the sentences
    show();
  });
  return { element: group, show, of: [name, "_limits"] };
}

export default {
  render({ model, el }) {
    el.classList.add("pipelab", "pl-choices");
    el.addEventListener("keydown", keepKeys);
    const parts = [choicesMenu(model), ...CHOICES_NUMBERS.map((one) => choicesNumber(model, ...one))];
    const heard = [];
    for (const part of parts) {
      el.append(part.element);
      for (const name of part.of) {
        model.on(`change:${name}`, part.show);
        heard.push([`change:${name}`, part.show]);
      }
      part.show();
    }
    return () => {
      for (const [event, listener] of heard) model.off(event, listener);
    };
  },
};
