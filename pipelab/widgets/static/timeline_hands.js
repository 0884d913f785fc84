// What keys, the wheel and the pointer do to a timeline.
import { panned } from "./geometry.js";

export const CLOSER = 0.8; // what one press leaves of the seconds in sight

// Handlers by event, for the canvas.
export function handsOf(screen) {
  return {
    keydown: (event) => pressKey(screen, event),
    wheel: (event) => turnWheel(screen, event),
    pointerdown: (event) => press(screen, event),
    pointermove: (event) => movePointer(screen, event),
    pointerup: (event) => release(screen, event),
    pointerleave: () => screen.hover.nothing(),
    pointercancel: () => (screen.pressed = null),
    dblclick: () => screen.showAll(),
  };
}

const KEYS = {
  "+": (screen) => screen.zoom(CLOSER),
  "=": (screen) => screen.zoom(CLOSER),
  "-": (screen) => screen.zoom(1 / CLOSER),
  _: (screen) => screen.zoom(1 / CLOSER),
  0: (screen) => screen.showAll(),
  Home: (screen) => screen.showAll(),
  c: (screen) => screen.toggle("critical_path"),
  m: (screen) => screen.toggle("memory"),
  Enter: (screen) => screen.selectHere(),
  " ": (screen) => screen.selectHere(),
  Escape: (screen) => screen.letGo(),
  ArrowLeft: (screen) => screen.step(-1, 0) || screen.pan(-0.1),
  ArrowRight: (screen) => screen.step(1, 0) || screen.pan(0.1),
  ArrowUp: (screen) => screen.step(0, -1),
  ArrowDown: (screen) => screen.step(0, 1),
};

function pressKey(screen, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const action = Object.hasOwn(KEYS, event.key) ? KEYS[event.key] : null;
  if (!action || action(screen) === false) return; // the page may scroll
  event.preventDefault();
  event.stopPropagation();
}

function turnWheel(screen, event) {
  const { canvas } = screen.parts;
  if (!(event.ctrlKey || event.metaKey || document.activeElement === canvas)) return; // the page scrolls
  event.preventDefault();
  const pixels = event.deltaMode === 1 ? 16 : 1;
  if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    screen.pan((event.deltaX * pixels) / screen.area.plot);
    return;
  }
  const turned = Math.max(-0.4, Math.min(0.4, (event.deltaY * pixels) / 300));
  screen.zoom(Math.exp(turned), Math.max(screen.shown[0], Math.min(screen.shown[1], screen.point(event).time)));
}

function press(screen, event) {
  if (event.button !== 0) return;
  screen.pressed = { x: event.clientX, shown: screen.shown, moved: false };
  screen.parts.canvas.setPointerCapture(event.pointerId);
}

function movePointer(screen, event) {
  const { pressed } = screen;
  if (!pressed) {
    screen.hover.at(screen.point(event));
    return;
  }
  const by = event.clientX - pressed.x;
  if (!pressed.moved && Math.abs(by) <= 3) return; // a click with an unsteady hand
  pressed.moved = true;
  screen.parts.canvas.classList.add("pl-panning");
  screen.hover.nothing();
  const seconds = (by / screen.area.plot) * (pressed.shown[1] - pressed.shown[0]);
  screen.setShown(panned(pressed.shown, -seconds, screen.stop));
}

function release(screen, event) {
  const { pressed } = screen;
  screen.pressed = null;
  screen.parts.canvas.classList.remove("pl-panning");
  if (pressed && !pressed.moved) screen.select(screen.point(event).box);
}
