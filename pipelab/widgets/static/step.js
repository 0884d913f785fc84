import { makeElement } from "./element.js";
import { keepKeys } from "./keys.js";

// What moves a step by hand or by itself, the sentence about what changed, and a row for each rank.

const STEP_PATIENCE = 2000; // ms: after that an answer is not waited for any more

// ---- the player

function stepPlayer(model) {
  let timer = null;
  let wish = null;
  let askedAt = 0; // of the one message under way; 0 for none

  const last = () => model.get("num_steps");
  const isWaiting = () => askedAt > 0 && performance.now() - askedAt < STEP_PATIENCE;

  // A hand that moves faster than the kernel answers leaves no queue behind: of what it wished meanwhile the newest
  // counts.
  function send() {
    if (wish === null || isWaiting()) return;
    const step = wish;
    wish = null;
    if (step === model.get("step")) return;
    askedAt = performance.now();
    model.set("step", step);
    model.save_changes();
  }

  function answered() {
    askedAt = 0;
    send();
  }

  function go(step) {
    wish = Math.min(Math.max(step, 0), last());
    send();
  }

  function play(on) {
    if (on === model.get("playing")) return;
    model.set("playing", on);
    model.save_changes();
  }

  function toggle() {
    if (!model.get("playing") && model.get("step") >= last()) go(0);
    play(!model.get("playing"));
  }

  function tick() {
    timer = setTimeout(tick, 1000 / model.get("speed"));
    if (isWaiting() || wish !== null) return; // the kernel is slower: so is the film
    if (model.get("step") >= last()) play(false);
    else go(model.get("step") + 1);
  }

  function run() {
    clearTimeout(timer);
    timer = model.get("playing") ? setTimeout(tick, 1000 / model.get("speed")) : null;
  }

  model.on("change:table change:alert", answered);
  model.on("change:playing change:speed", run);
  run();
  return {
    go,
    toggle,
    by: (count) => go((wish ?? model.get("step")) + count),
    end() {
      clearTimeout(timer);
      model.off("change:table change:alert", answered);
      model.off("change:playing change:speed", run);
    },
  };
}

// ---- the row of controls

// Drawn, since not every font has these signs.
const STEP_SIGNS = {
  first: "M3 3h2v10H3z M13 3v10L6 8z",
  back: "M12 3v10L5 8z",
  on: "M4 3v10l7-5z",
  play: "M4 2v12l10-6z",
  pause: "M4 2h3v12H4z M9 2h3v12H9z",
};

function stepSign(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 16 16", width: "15", height: "15", "aria-hidden": "true" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", STEP_SIGNS[name]);
  path.setAttribute("fill", "currentColor");
  svg.append(path);
  return svg;
}

function stepButton(label, sign, action) {
  const button = makeElement("button", "pl-button", { type: "button", "aria-label": label, title: label });
  button.append(stepSign(sign));
  button.addEventListener("click", action);
  return button;
}

function stepSpeed(model) {
  const label = makeElement("label", "pl-step-speed", {}, "speed ");
  const menu = makeElement("select", "pl-select", { title: "Steps a second" });
  label.append(menu);
  menu.addEventListener("change", () => {
    model.set("speed", Number(menu.value));
    model.save_changes();
  });

  function show() {
    const speed = model.get("speed");
    const speeds = [...new Set([...model.get("_look").speeds, speed])].sort((a, b) => a - b);
    menu.replaceChildren(...speeds.map((each) => new Option(`${each} a second`, each, false, each === speed)));
  }
  return { label, show };
}

function stepControls(model, player) {
  const row = makeElement("div", "pl-step-controls", { role: "group", "aria-label": "Step through the moments" });
  const slider = makeElement("input", "pl-step-slider", { type: "range", min: "0", step: "1", "aria-label": "step" });
  const where = makeElement("span", "pl-step-where", { "aria-hidden": "true" });
  const play = stepButton("Play", "play", player.toggle);
  play.classList.add("pl-step-play");
  const speed = stepSpeed(model);
  row.append(
    stepButton("First moment", "first", () => player.go(0)),
    stepButton("One step back", "back", () => player.by(-1)),
    play,
    stepButton("One step on", "on", () => player.by(1)),
    slider,
    where,
    speed.label,
  );
  slider.addEventListener("input", () => player.go(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {
    if (event.key !== " ") return;
    event.preventDefault();
    player.toggle();
  });

  function show() {
    const { step, when } = model.get("table");
    slider.max = model.get("num_steps"); // the end first: a value beyond it would be clamped
    slider.value = model.get("step");
    slider.setAttribute("aria-valuetext", `step ${step} of ${model.get("num_steps")}, ${when}`);
    where.textContent = `step ${step} of ${model.get("num_steps")} · ${when}`;
    const isPlaying = model.get("playing");
    if (play.dataset.playing === String(isPlaying)) return;
    play.dataset.playing = isPlaying;
    play.replaceChildren(stepSign(isPlaying ? "pause" : "play"));
    for (const name of ["aria-label", "title"]) play.setAttribute(name, isPlaying ? "Pause" : "Play");
  }
  return { row, show, speed };
}

// ---- a row for each rank

const STEP_COLUMNS = [
  ["rank", "rank"],
  ["now", "now"],
  ["why", "why"],
  ["flying", "in flight"],
  ["keeps", "keeps"],
];
const STEP_VERBS = { runs: "runs", waits: "waits for", done: "done" };

function stepChip(chip, does, look) {
  const element = makeElement("span", `pl-step-chip pl-step-chip-${does}`, { title: chip.name }, chip.name);
  element.style.setProperty("--pl-step-paint", look.paints[chip.paint]);
  if (does === "runs") element.style.color = look.inks[chip.paint];
  return element;
}

function stepRank(rank, look) {
  const row = makeElement("tr", "");
  const cells = Object.fromEntries(
    STEP_COLUMNS.map(([key]) => [key, makeElement(key === "rank" ? "th" : "td", `pl-step-${key}`)]),
  );
  cells.rank.setAttribute("scope", "row");
  cells.rank.textContent = `rank ${rank}`;
  const verb = makeElement("span", "pl-step-verb");
  const chips = makeElement("span", "pl-step-chips");
  const when = makeElement("span", "pl-step-when");
  const line = makeElement("div", "pl-step-line");
  line.append(verb, chips);
  cells.now.append(line, when);
  const words = makeElement("div", "pl-step-words");
  cells.why.append(words);
  const bar = makeElement("div", "pl-step-bar", { "aria-hidden": "true" });
  const fill = makeElement("div", "pl-step-fill");
  fill.style.background = look.memory;
  bar.append(fill);
  const kept = makeElement("span", "pl-step-kept");
  cells.keeps.append(kept, bar);
  row.append(...Object.values(cells));

  function show(state) {
    row.dataset.does = state.does;
    row.dataset.new = state.is_new;
    verb.textContent = STEP_VERBS[state.does];
    chips.replaceChildren(...state.chips.map((chip) => stepChip(chip, state.does, look)));
    when.textContent = state.when;
    words.textContent = state.words;
    words.title = state.sentence; // a long chain of reasons is cut off after two lines
    const labels = state.flying.names.map((name) => makeElement("span", name === "…" ? "" : "pl-step-flight", {}, name));
    cells.flying.replaceChildren(...labels);
    cells.flying.title = `${state.flying.count} in flight`;
    kept.textContent = state.kept;
    cells.keeps.title = state.most;
    fill.style.width = `${100 * state.part}%`;
  }
  return { row, show };
}

function stepTable(model) {
  const frame = makeElement("div", "pl-step-frame");
  const table = makeElement("table", "pl-step-table", { "aria-label": "What each rank does" });
  const head = makeElement("tr", "");
  head.append(
    ...STEP_COLUMNS.map(([key, name]) => makeElement("th", `pl-step-${key}`, { scope: "col" }, name)),
  );
  const top = makeElement("thead", "");
  top.append(head);
  const body = makeElement("tbody", "");
  table.append(top, body);
  frame.append(table);
  let ranks = [];

  function show() {
    const states = model.get("table").rows;
    if (ranks.length !== states.length) {
      ranks = states.map((_, rank) => stepRank(rank, model.get("_look")));
      body.replaceChildren(...ranks.map((rank) => rank.row));
    }
    ranks.forEach((rank, k) => rank.show(states[k]));
    const isLong = frame.scrollHeight > frame.clientHeight;
    if (isLong) frame.setAttribute("tabindex", "0"); // what scrolls is scrolled by keys too
    else frame.removeAttribute("tabindex");
  }
  return { frame, show };
}

// ---- all of it

function stepRender(model, el, player) {
  el.classList.add("pipelab", "pl-step");
  const controls = stepControls(model, player);
  const sentence = makeElement("p", "pl-step-sentence", { role: "status", "aria-live": "polite" });
  const alert = makeElement("div", "pl-alert", { role: "alert" });
  const table = stepTable(model);
  el.append(controls.row, alert, sentence, table.frame);
  el.addEventListener("keydown", keepKeys);

  function show() {
    // Read aloud, a fast film would only be noise.
    sentence.setAttribute("aria-live", model.get("playing") && model.get("speed") > 1 ? "off" : "polite");
    if (sentence.textContent !== model.get("table").sentence) sentence.textContent = model.get("table").sentence;
    alert.textContent = model.get("alert");
    controls.show();
    table.show();
  }

  const parts = "change:table change:step change:num_steps change:playing change:alert";
  model.on(parts, show);
  model.on("change:speed", controls.speed.show);
  controls.speed.show();
  show();
  return () => {
    el.removeEventListener("keydown", keepKeys);
    model.off(parts, show);
    model.off("change:speed", controls.speed.show);
  };
}

// One player for each widget, however many views of it there are: two views must not play twice as fast.
export default () => {
  let player;
  return {
    initialize({ model }) {
      player = stepPlayer(model);
      return player.end;
    },
    render: ({ model, el }) => stepRender(model, el, player),
  };
};
