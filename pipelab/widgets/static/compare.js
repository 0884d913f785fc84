import { makeElement } from "./element.js";
import { keepKeys } from "./keys.js";

// The numbers of several runs, each with its difference to the first, and what the colours of their timelines mean.

function compareLegend(entries) {
  const legend = makeElement("div", "pl-compare-legend", { role: "note", "aria-label": "Colours" });
  for (const [name, colour] of [...entries, ["idle", null]]) {
    const entry = makeElement("span", "pl-legend-entry");
    const swatch = makeElement("span", colour ? "pl-swatch" : "pl-swatch pl-swatch-idle");
    if (colour) swatch.style.background = colour;
    entry.append(swatch, name);
    legend.append(entry);
  }
  return legend;
}

function compareHead({ runs, columns, removable }) {
  const row = makeElement("tr", "");
  row.append(makeElement("th", "pl-compare-name", { scope: "col" }, runs));
  for (const name of columns) row.append(makeElement("th", "pl-compare-number", { scope: "col", colspan: "2" }, name));
  if (removable) row.append(makeElement("td", ""));
  const head = makeElement("thead", "");
  head.append(row);
  return head;
}

function compareName(row, number) {
  const cell = makeElement("th", "pl-compare-name", { scope: "row" });
  const name = makeElement("span", "pl-compare-label", { title: row.title }, `${number + 1}. ${row.name}`);
  cell.append(name);
  if (row.clock) cell.append(makeElement("span", "pl-compare-about", {}, row.clock));
  return cell;
}

function compareNumber({ text, change, best }, remark) {
  const value = makeElement("td", "pl-compare-number pl-compare-value", {}, text || "unknown");
  if (!text) value.classList.add("pl-compare-unknown");
  const beside = makeElement("td", "pl-compare-number pl-compare-change", {}, change || (text && remark ? "first" : ""));
  if (!change && remark) beside.title = remark;
  if (best) beside.append(" ", makeElement("span", "pl-compare-best", {}, "best"));
  return [value, beside];
}

function compareRemove(model, row, number) {
  const label = `Remove ${row.name}`;
  const button = makeElement("button", "pl-button", { type: "button", "aria-label": label, title: label }, "×");
  button.addEventListener("click", () => model.send({ what: "remove", row: number }));
  const cell = makeElement("td", "pl-compare-remove");
  cell.append(button);
  return cell;
}

function compareRender({ model, el }) {
  el.classList.add("pipelab", "pl-compare");
  const alert = makeElement("div", "pl-alert", { role: "alert" });
  const frame = makeElement("div", "pl-compare-frame");
  el.append(alert, frame);
  el.addEventListener("keydown", keepKeys);

  function show() {
    const { rows, legend, removable, note } = model.get("table");
    const table = makeElement("table", "pl-compare-table");
    table.append(makeElement("caption", "pl-aloud", {}, note || "Runs compared with the first"), compareHead(model.get("table")));
    const body = makeElement("tbody", "");
    rows.forEach((row, number) => {
      const line = makeElement("tr", "");
      line.append(compareName(row, number), ...row.cells.flatMap((cell) => compareNumber(cell, row.remark)));
      if (removable) line.append(compareRemove(model, row, number));
      body.append(line);
    });
    table.append(body);
    const focused = [...frame.querySelectorAll("button")].indexOf(document.activeElement);
    frame.replaceChildren(compareLegend(legend), table);
    if (note) frame.append(makeElement("p", "pl-compare-note", {}, note));
    // Whoever removes by keyboard stays in the table.
    if (focused >= 0) [...frame.querySelectorAll("button")].slice(0, focused + 1).pop()?.focus();
  }

  function say() {
    alert.textContent = model.get("alert");
  }

  model.on("change:table", show);
  model.on("change:alert", say);
  show();
  say();
  return () => {
    el.removeEventListener("keydown", keepKeys);
    model.off("change:table", show);
    model.off("change:alert", say);
  };
}

export default { render: compareRender };
