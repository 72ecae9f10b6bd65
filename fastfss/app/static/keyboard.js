// What keys do.

import { $, make } from "./panels.js";

const KEYS = [
  ["1 to 9", "choose an object"], ["N", "new object"],
  ["T  R  S  P  M", "click, box, scribble, brush, move"], ["X", "the object, or not it"],
  ["Ctrl+Z, Ctrl+Y", "undo, redo"], ["Backspace", "clear the object in this frame"],
  ["Left, Right", "one frame; with Shift ten, with Alt to an end"],
  ["Space or F", "follow forward; stop"], ["B", "follow backward"], ["Shift+Space", "follow both ways"],
  ["K", "play"], ["C", "keep the frame as a support"], ["V", "view"], ["H", "hide masks"],
  ["+  −  0", "zoom in, out, fit; also by wheel or two fingers"], ["E", "download"],
  ["Ctrl+arrows, Ctrl+Enter", "move a cursor on the frame; mark there (with Shift: not it)"],
  ["Esc", "stop, close"], ["?", "this list"],
];

export class Keyboard {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.cursor = [0.5, 0.5]; // of the frame's width and height
    document.addEventListener("keydown", (event) => this.key(event));
    $("keys-list").replaceChildren(...KEYS.flatMap(([key, what]) => [
      make("dt", { textContent: key }), make("dd", { textContent: what }),
    ]));
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    if (document.querySelector("dialog[open]") || !this.app.state) return;
    if (target.matches("select, input:not([type=range])")) return;
    const { key, shiftKey: shift } = event;
    const ctrl = event.ctrlKey || event.metaKey;
    if (target.matches("button, a, label") && !ctrl && (key === " " || key === "Enter")) return;
    if (target.matches("input[type=range]") && key.startsWith("Arrow")) return;
    if (this.controlKey(event, ctrl) || (!ctrl && this.plainKey(key, shift, event.altKey))) {
      event.preventDefault();
    }
  }

  /** @param {KeyboardEvent} event @param {boolean} ctrl @returns {boolean} whether it did something */
  controlKey(event, ctrl) {
    if (!ctrl) return false;
    const { app, cursor } = this;
    const key = event.key.toLowerCase();
    const [width, height] = app.viewer.size;
    const [x, y] = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[key] ?? [0, 0];
    if (key === "z" && !event.shiftKey) app.move("undo");
    else if (key === "y" || key === "z") app.move("redo");
    else if (x || y) {
      const by = (event.shiftKey ? 1 : 12) / Math.min(width, height);
      cursor[0] = Math.min(0.999, Math.max(0, cursor[0] + x * by * (height < width ? height / width : 1)));
      cursor[1] = Math.min(0.999, Math.max(0, cursor[1] + y * by * (width < height ? width / height : 1)));
      app.viewer.setCursor([cursor[0] * width, cursor[1] * height]);
    } else if (key === "enter") {
      const points = [[cursor[0] * width, cursor[1] * height]];
      app.mark({ kind: "point", positive: app.viewer.positive && !event.shiftKey, points });
    } else return false;
    return true;
  }

  /** @param {string} key @param {boolean} shift @param {boolean} alt @returns {boolean} */
  plainKey(key, shift, alt) {
    const { app } = this;
    const far = alt ? Infinity : shift ? 10 : 1;
    const tool = { t: "click", r: "box", s: "scribble", p: "brush", m: "pan" }[key.toLowerCase()];
    const middle = $("canvas").getBoundingClientRect();
    const centre = { clientX: middle.x + middle.width / 2, clientY: middle.y + middle.height / 2 };
    if (tool && !alt) app.controls.setTool(tool);
    else if (key >= "1" && key <= "9") {
      if (app.state.objects.some((/** @type {any} */ o) => o.id === Number(key))) app.choose(Number(key));
    } else if (key === "ArrowLeft") app.step(-far);
    else if (key === "ArrowRight") app.step(far);
    else if (key === " ") app.propagate(shift ? "both" : "forward");
    else if (key === "f") app.propagate("forward");
    else if (key === "b") app.propagate("backward");
    else if (key === "k") app.play();
    else if (key === "n") app.addObject();
    else if (key === "c") app.ask("commit", { frame: app.frame });
    else if (key === "x") app.controls.setSign(!app.viewer.positive);
    else if (key === "v") $("view").click();
    else if (key === "h") app.controls.setView(app.viewer.view === "hidden" ? "colours" : "hidden");
    else if (key === "e" && app.state.masked.length) $("export").click();
    else if (key === "+" || key === "=") app.viewer.zoomAt(centre, 1.25);
    else if (key === "-") app.viewer.zoomAt(centre, 0.8);
    else if (key === "0") app.viewer.fit();
    else if (key === "Backspace" || key === "Delete") $("clear").click();
    else if (key === "?") $("keys-dialog").showModal();
    else if (key === "Escape") {
      app.playing = false;
      app.viewer.drawing = null;
      if (app.busy) app.ask("cancel");
    } else return false;
    return true;
  }
}
