// The page: one session at a time, what is shown of it, and what buttons and keys do.

import { openFiles, openSession, request } from "./api.js";
import { Camera } from "./camera.js";
import { Connection } from "./connection.js";
import { Frames } from "./frames.js";
import { decodeMasks, encodeRuns, VIEWS } from "./masks.js";
import { $, KEYS, make, showObjects, showStats, showSupports } from "./panels.js";
import { SupportDialog } from "./support.js";
import { drawTracks, frameAt } from "./timeline.js";
import { Viewer } from "./viewer.js";

const HINT = "Click on something to segment it. Right click, or “− not it”, takes away.";
const PLAYED = 24; // frames a second at most, where the video says nothing
const TOLD = 6000; // milliseconds that a message stays

class App {
  constructor() {
    this.session = "";
    /** @type {Connection | null} */
    this.link = null;
    /** @type {any} */
    this.state = null;
    /** @type {any} */
    this.stats = null;
    /** @type {Frames | null} */
    this.frames = null;
    /** @type {Camera | null} */
    this.camera = null;
    this.frame = 0;
    this.object = 0;
    this.busy = false;
    this.following = false; // the frames that are propagated are shown
    this.playing = false;
    this.drawnIn = 0;
    this.asked = 0; // when the last mark was made
    this.cursor = [0.5, 0.5];
    /** @type {((value?: unknown) => void)[]} */
    this.masksWaiting = [];
    this.viewer = new Viewer($("canvas"), { drawn: (mark) => this.mark(mark) });
    this.support = new SupportDialog((session) => this.useSupport(session));
    this.bind();
    this.setTool("click");
    this.setSign(true);
  }

  // ---- Sessions

  async start() {
    const asked = new URLSearchParams(location.hash.slice(1)).get("s");
    if (asked) return this.connect(asked);
    const { sources } = await request("GET", "/api/sources");
    return this.open(sources[0].source);
  }

  /** @param {import("./api.js").Source} source */
  async open(source) {
    this.note("Opening");
    await this.connect(await openSession(source));
    if (source.kind === "camera") await this.startCamera();
  }

  /** @param {string} session */
  async connect(session) {
    this.link?.close();
    this.camera?.stop();
    this.camera = null;
    this.session = session;
    this.frames = new Frames(session);
    this.state = this.stats = null;
    this.frame = this.object = 0;
    this.playing = false;
    this.viewer.picture = null;
    this.viewer.prompts = [];
    this.viewer.setMasks(null);
    $("camera-frame").hidden = true;
    $("hint").hidden = false;
    history.replaceState(null, "", `#s=${session}`);
    $("hint").textContent = HINT;
    // What the session before still had to say is of no interest.
    const link = new Connection(session, {
      message: (plain) => link === this.link && this.take(plain),
      masks: (data) => link === this.link && this.takeMasks(data),
      link: (on, gone) => link === this.link && this.linked(on, gone),
    });
    this.link = link;
  }

  /** @param {boolean} on @param {boolean} gone */
  linked(on, gone) {
    $("link").textContent = on ? "connected" : gone ? "gone" : "reconnecting";
    $("link").classList.toggle("on", on);
    this.releaseMasks();
    if (gone) this.openDialog().catch(this.fail);
    else if (on && this.state) this.show(this.frame).catch(() => {});
  }

  // ---- What the server says

  /** @param {any} plain */
  take(plain) {
    if (plain.kind === "state") this.takeState(plain);
    else if (plain.kind === "progress") this.takeProgress(plain);
    else if (plain.kind === "live") this.takeLive(plain);
    else if (plain.kind === "error") this.tell(plain.message);
    else if (plain.kind === "prompts" && plain.frame === this.frame) this.setPrompts(plain.prompts);
    else if (plain.kind === "stats") {
      this.stats = plain;
      if (this.state) showStats(plain, this.state, this.drawnIn);
    }
  }

  /** @param {any} state */
  takeState(state) {
    const before = this.state;
    this.state = state;
    this.viewer.colours = new Map(state.objects.map((/** @type {any} */ o) => [o.id, o.colour]));
    const known = state.objects.map((/** @type {any} */ o) => o.id);
    if (!known.includes(this.object)) this.object = known.at(-1) ?? 0;
    this.setBusy(state.busy);
    $("source").textContent = `${state.name}, ${state.size[1]} × ${state.size[0]}`;
    $("undo").disabled = !state.can_undo;
    $("redo").disabled = !state.can_redo;
    $("slider").max = String(Math.max(0, state.count - 1));
    const still = state.count < 2 && !state.live;
    $("time").hidden = still;
    for (const id of ["play", "back", "next", "propagate", "propagate-back", "propagate-both"]) {
      $(id).disabled = still || state.live;
    }
    $("slider").disabled = still || state.live;
    $("commit").disabled = $("clear").disabled = !state.masked.length;
    const link = $("export");
    link.setAttribute("aria-disabled", String(!state.masked.length));
    if (state.masked.length) link.href = `/api/sessions/${this.session}/export/${$("format").value}`;
    else link.removeAttribute("href");
    this.showLists();
    if (!before) {
      showStats({ answers: {}, seconds: {}, prompted: state.prompted.length,
        supports: state.supports.length, cache: { frames: 0, bytes: 0 },
        results: { frames: 0, bytes: 0 } }, state, 0);
      if (!state.live) this.show(this.frame).catch(this.fail);
    } else if (before.seq !== state.seq && !state.busy && !this.camera?.running) {
      this.refresh().catch(() => {});
    }
    this.drawTime();
  }

  showLists() {
    showObjects(this.state, this.object, {
      choose: (n) => this.choose(n),
      rename: (n, name) => this.rename(n, name),
      remove: (n) => this.ask("object.remove", { object: n }),
    });
    showSupports(this.session, this.state, {
      jump: (frame) => this.show(frame).catch(this.fail),
      forget: (support) => this.ask("support.forget", { support }),
    });
    const chosen = this.state.objects.find((/** @type {any} */ o) => o.id === this.object);
    this.viewer.colour = chosen?.colour ?? [255, 255, 255];
    $("add-support").disabled = !chosen;
  }

  /** @param {any} plain */
  takeProgress(plain) {
    this.setBusy(!plain.ended);
    $("progress").value = plain.total ? plain.done / plain.total : 1;
    const percent = plain.total ? Math.round((100 * plain.done) / plain.total) : 100;
    $("progress-text").textContent =
      `${plain.done} of ${plain.total} frames, ${percent} %, ${plain.fps} a second`;
  }

  /** @param {ArrayBuffer} data */
  async takeMasks(data) {
    const masks = decodeMasks(data);
    const link = this.link;
    try {
      if (masks.propagated && !this.camera && this.following && this.frames) {
        const picture = await this.frames.get(masks.frame); // so that both change together
        if (this.following) { // nobody went elsewhere meanwhile
          this.frame = masks.frame;
          this.viewer.prompts = [];
          this.setPicture(picture);
          this.drawTime();
        }
      }
      if (masks.frame === this.frame || this.camera?.running) this.viewer.setMasks(masks);
      this.releaseMasks();
    } catch (error) {
      this.fail(error);
    } finally {
      link?.acknowledge();
    }
  }

  releaseMasks() {
    for (const resolve of this.masksWaiting.splice(0)) resolve();
  }

  /** @param {CanvasImageSource} picture */
  setPicture(picture) {
    const { width, height } = /** @type {ImageBitmap} */ (picture);
    this.viewer.setPicture(picture, width, height);
  }

  /** @param {any[]} prompts */
  setPrompts(prompts) {
    this.viewer.prompts = prompts;
    this.viewer.draw();
  }

  // ---- Frames

  /** @param {number} frame */
  async show(frame) {
    if (!this.link || !this.frames || !this.state) return;
    if (this.camera) return this.refresh();
    frame = Math.min(this.state.count - 1, Math.max(0, frame));
    const moved = frame !== this.frame;
    if (moved) this.following = false;
    this.frame = frame;
    this.drawTime();
    const [picture, reply] = await Promise.all([
      this.frames.get(frame), this.link.ask("show", { frame }),
    ]);
    if (this.frame !== frame) return; // another was asked for meanwhile
    this.setPicture(picture);
    this.setPrompts(reply.prompts);
    if (moved && this.viewer.masks && this.viewer.masks.frame !== frame) this.viewer.setMasks(null);
    if (frame + 1 < this.state.count) this.frames.get(frame + 1).catch(() => {});
  }

  /** The masks and prompts of the frame that is shown, anew. */
  async refresh() {
    const frame = this.frame;
    if (!this.link || (this.state.live && !this.state.count)) return;
    const reply = await this.link.ask("show", { frame });
    if (frame === this.frame) this.setPrompts(reply.prompts);
  }

  drawTime() {
    const { state } = this;
    if (!state) return;
    $("slider").value = String(this.frame);
    $("frame").textContent = state.live ? `live, ${state.count}` : `${this.frame + 1} / ${state.count}`;
    drawTracks($("tracks"), state, this.frame);
  }

  async play() {
    if (this.playing) {
      this.playing = false;
      return;
    }
    this.playing = true;
    $("play").textContent = "Pause";
    try {
      if (this.frame === this.state.count - 1) await this.show(0);
      while (this.playing && !this.busy && this.frame < this.state.count - 1) {
        const since = performance.now();
        const drawn = new Promise((resolve) => this.masksWaiting.push(resolve));
        await Promise.all([this.show(this.frame + 1), drawn]);
        const rest = 1000 / (this.state.fps || PLAYED) - (performance.now() - since);
        await new Promise((resolve) => setTimeout(resolve, Math.max(0, rest)));
      }
    } catch (error) {
      this.fail(error);
    }
    this.playing = false;
    $("play").textContent = "Play";
  }

  // ---- Commands

  /** @param {string} what @param {object} [fields] @returns {Promise<any>} undefined on an error */
  async ask(what, fields = {}) {
    try {
      return await this.link?.ask(what, fields);
    } catch (error) {
      this.fail(error);
      return undefined;
    }
  }

  /** @param {import("./viewer.js").Drawn} mark */
  async mark(mark) {
    if (!this.state) return;
    if (this.camera?.running) this.freeze();
    $("hint").hidden = true;
    const { frame } = this;
    try {
      if (!this.object) this.object = (await /** @type {Connection} */ (this.link).ask("object.add")).object;
      const where = { frame, object: this.object };
      const { points, positive } = mark;
      this.asked = performance.now();
      let reply;
      if (mark.kind === "point") reply = await this.link?.ask("clicks", { ...where, points, positive });
      else if (mark.kind === "stroke") {
        const width = this.viewer.width;
        reply = await this.link?.ask("scribble", { ...where, path: thinned(points), positive, width });
      } else if (mark.kind === "box") {
        const [[x0, y0], [x1, y1] = [x0, y0]] = points;
        const box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
        if (box[2] - box[0] > 2 && box[3] - box[1] > 2) reply = await this.link?.ask("box", { ...where, box });
      } else {
        const labels = this.viewer.brushed(mark, this.object);
        reply = await this.link?.ask("mask", { ...where, runs: encodeRuns(labels, this.object) });
      }
      if (reply && frame === this.frame) this.setPrompts(reply.prompts);
      const since = this.asked;
      requestAnimationFrame(() => { // the masks came before the reply
        this.drawnIn = performance.now() - since;
        if (this.stats) showStats(this.stats, this.state, this.drawnIn);
      });
    } catch (error) {
      this.fail(error);
    }
    this.asked = 0;
  }

  /** Undo or redo, and go where it changed something. @param {"undo" | "redo"} what */
  async move(what) {
    const reply = await this.ask(what);
    if (reply?.frame !== undefined && reply.frame !== this.frame) {
      await this.show(reply.frame).catch(this.fail);
    }
  }

  async addObject() {
    const reply = await this.ask("object.add");
    if (reply) this.choose(reply.object);
  }

  /** @param {number} number */
  choose(number) {
    this.object = number;
    if (this.state) this.showLists();
  }

  /** @param {number} number @param {string} name */
  rename(number, name) {
    const given = prompt("What is it?", name)?.trim();
    if (given && given !== name) this.ask("object.rename", { object: number, name: given });
  }

  /** @param {string} session */
  async useSupport(session) {
    await this.link?.ask("support.add", { session, shown: 1, object: this.object });
  }

  /** @param {"forward" | "backward" | "both"} direction */
  async propagate(direction) {
    if (this.busy) {
      this.ask("cancel");
      return;
    }
    if (this.state.count < 2) return;
    this.playing = false;
    if (await this.ask("propagate", { frame: this.frame, direction })) this.setBusy(true);
  }

  /** @param {boolean} busy */
  setBusy(busy) {
    if (busy && !this.busy) this.following = true;
    this.busy = busy;
    $("stop").hidden = !busy;
    $("progress-row").hidden = !busy;
    for (const id of ["propagate", "propagate-back", "propagate-both"]) $(id).hidden = busy;
  }

  // ---- Webcam

  async startCamera() {
    const camera = new Camera((data) => this.link?.sendBytes(data));
    await camera.start();
    this.camera = camera;
    $("camera-frame").hidden = false;
    $("hint").textContent = "Click on something: the picture stops, and goes on with “Go on”.";
    this.goOn();
  }

  goOn() {
    if (!this.camera) return;
    this.camera.running = true;
    $("camera-frame").textContent = "Freeze";
    this.setPrompts([]);
    this.camera.shoot().catch(this.fail);
  }

  freeze() {
    if (!this.camera) return;
    this.camera.running = false;
    $("camera-frame").textContent = "Go on";
  }

  /** @param {{number: number, frame: number}} plain */
  takeLive(plain) {
    const picture = this.camera?.take(plain.number);
    if (!picture || !this.camera) return;
    this.frame = plain.frame;
    this.state.count = Math.max(this.state.count, plain.frame + 1);
    this.setPicture(picture);
    this.drawTime();
    if (this.camera.running) this.camera.shoot().catch(this.fail);
  }

  // ---- Dialogs

  async openDialog() {
    const dialog = $("open-dialog");
    const { sources, sessions } = await request("GET", "/api/sources");
    const row = (/** @type {string} */ title, /** @type {() => void} */ go) => make("li", {}, [
      make("button", { type: "button", className: "pick", textContent: title, onclick: () => {
        dialog.close();
        go();
      } }),
    ]);
    $("sources").replaceChildren(...sources.map((/** @type {any} */ source) => row(source.title,
      () => this.open(source.source).catch(this.fail))));
    $("earlier").replaceChildren(...sessions.map((/** @type {any} */ { id, title, changed }) => row(
      `${title}, ${new Date(changed * 1000).toLocaleString()}`,
      () => this.connect(id).catch(this.fail))));
    if (!dialog.open) dialog.showModal();
  }

  /** @param {File[]} files */
  async openFiles(files) {
    const say = (/** @type {string} */ text) => { $("upload-text").textContent = text; };
    try {
      const session = await openFiles(files, say);
      $("open-dialog").close();
      await this.connect(session);
      say("");
    } catch (error) {
      say(/** @type {Error} */ (error).message);
    }
  }

  /** Masks of a palette PNG for this frame, or of COCO's JSON or CVAT's XML. @param {File} file */
  async importMasks(file) {
    const name = encodeURIComponent(file.name);
    const path = `/api/sessions/${this.session}/annotations?name=${name}&frame=${this.frame}`;
    const { frames } = await request("PUT", path, file);
    if (!frames.includes(this.frame)) await this.show(frames[0]);
  }

  /** @param {string} text */
  note(text) {
    $("source").textContent = text;
  }

  /** @param {string} text */
  tell(text) {
    const box = $("message");
    box.textContent = text;
    box.hidden = false;
    clearTimeout(this.told);
    this.told = setTimeout(() => { box.hidden = true; }, TOLD);
  }

  fail = (/** @type {any} */ error) => this.tell(error.message);

  // ---- Buttons and keys

  /** @param {string} tool */
  setTool(tool) {
    this.viewer.tool = tool;
    check("[data-tool]", (button) => button.dataset.tool === tool);
  }

  /** @param {boolean} positive */
  setSign(positive) {
    this.viewer.positive = positive;
    check("[data-sign]", (button) => (button.dataset.sign === "1") === positive);
  }

  /** @param {string} view */
  setView(view) {
    this.viewer.view = view;
    $("view").textContent = `View: ${view}`;
    this.viewer.paintMasks();
  }

  bind() {
    const on = (/** @type {string} */ id, /** @type {() => void} */ go) => { $(id).onclick = go; };
    for (const button of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-tool]"))) {
      button.onclick = () => this.setTool(button.dataset.tool ?? "click");
    }
    for (const button of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-sign]"))) {
      button.onclick = () => this.setSign(button.dataset.sign === "1");
    }
    $("width").oninput = () => { this.viewer.width = Number($("width").value); };
    on("open", () => this.openDialog().catch(this.fail));
    on("undo", () => this.move("undo"));
    on("redo", () => this.move("redo"));
    on("keys", () => $("keys-dialog").showModal());
    on("clear", () => this.ask("clear", { frame: this.frame, object: this.object || null }));
    on("view", () => this.setView(VIEWS[(VIEWS.indexOf(this.viewer.view) + 1) % VIEWS.length]));
    on("fit", () => this.viewer.fit());
    on("back", () => this.step(-1));
    on("next", () => this.step(1));
    on("play", () => this.play());
    on("propagate", () => this.propagate("forward"));
    on("propagate-back", () => this.propagate("backward"));
    on("propagate-both", () => this.propagate("both"));
    on("stop", () => this.ask("cancel"));
    on("add-object", () => this.addObject());
    on("commit", () => this.ask("commit", { frame: this.frame }));
    on("add-support", () => this.support.open(this.viewer.colour));
    on("camera-frame", () => (this.camera?.running ? this.freeze() : this.goOn()));
    on("camera", () => {
      $("open-dialog").close();
      this.open({ kind: "camera" }).catch(this.fail);
    });
    $("slider").oninput = () => this.show(Number($("slider").value)).catch(this.fail);
    $("tracks").onclick = (/** @type {MouseEvent} */ event) => {
      this.show(frameAt($("tracks"), this.state, event.offsetX)).catch(this.fail);
    };
    $("files").onchange = () => {
      const files = [...$("files").files];
      $("files").value = "";
      if (files.length) this.openFiles(files);
    };
    $("import").onchange = () => {
      const file = $("import").files[0];
      $("import").value = "";
      if (file) this.importMasks(file).catch(this.fail);
    };
    $("format").onchange = () => this.state && this.takeState(this.state);
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      const files = [...(event.dataTransfer?.files ?? [])];
      if (files.length) this.openDialog().then(() => this.openFiles(files), this.fail);
    });
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("resize", () => this.drawTime());
    $("keys-list").replaceChildren(...KEYS.flatMap(([key, what]) => [
      make("dt", { textContent: key }), make("dd", { textContent: what }),
    ]));
    request("GET", "/api/sources").then(({ exports }) => {
      $("format").replaceChildren(...exports.map((/** @type {string} */ name) => make("option",
        { value: name, textContent: FORMATS[name] ?? name })));
      if (this.state) this.takeState(this.state);
    }, this.fail);
  }

  /** @param {number} by */
  step(by) {
    this.playing = false;
    this.show(this.frame + by).catch(this.fail);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    if (document.querySelector("dialog[open]") || !this.state) return;
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
    const key = event.key.toLowerCase();
    const [width, height] = this.viewer.size;
    const [x, y] = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[key] ?? [0, 0];
    if (key === "z" && !event.shiftKey) this.move("undo");
    else if (key === "y" || key === "z") this.move("redo");
    else if (x || y) {
      const by = (event.shiftKey ? 1 : 12) / Math.min(width, height);
      this.cursor[0] = Math.min(0.999, Math.max(0, this.cursor[0] + x * by * (height < width ? height / width : 1)));
      this.cursor[1] = Math.min(0.999, Math.max(0, this.cursor[1] + y * by * (width < height ? width / height : 1)));
      this.viewer.setCursor([this.cursor[0] * width, this.cursor[1] * height]);
    } else if (key === "enter") {
      const points = [[this.cursor[0] * width, this.cursor[1] * height]];
      this.mark({ kind: "point", positive: this.viewer.positive && !event.shiftKey, points });
    } else return false;
    return true;
  }

  /** @param {string} key @param {boolean} shift @param {boolean} alt @returns {boolean} */
  plainKey(key, shift, alt) {
    const far = alt ? Infinity : shift ? 10 : 1;
    const tool = { t: "click", r: "box", s: "scribble", p: "brush", m: "pan" }[key.toLowerCase()];
    const middle = $("canvas").getBoundingClientRect();
    const centre = { clientX: middle.x + middle.width / 2, clientY: middle.y + middle.height / 2 };
    if (tool && !alt) this.setTool(tool);
    else if (key >= "1" && key <= "9") {
      if (this.state.objects.some((/** @type {any} */ o) => o.id === Number(key))) this.choose(Number(key));
    } else if (key === "ArrowLeft") this.step(-far);
    else if (key === "ArrowRight") this.step(far);
    else if (key === " ") this.propagate(shift ? "both" : "forward");
    else if (key === "f") this.propagate("forward");
    else if (key === "b") this.propagate("backward");
    else if (key === "k") this.play();
    else if (key === "n") this.addObject();
    else if (key === "c") this.ask("commit", { frame: this.frame });
    else if (key === "x") this.setSign(!this.viewer.positive);
    else if (key === "v") $("view").click();
    else if (key === "h") this.setView(this.viewer.view === "hidden" ? "colours" : "hidden");
    else if (key === "e" && this.state.masked.length) $("export").click();
    else if (key === "+" || key === "=") this.viewer.zoomAt(centre, 1.25);
    else if (key === "-") this.viewer.zoomAt(centre, 0.8);
    else if (key === "0") this.viewer.fit();
    else if (key === "Backspace" || key === "Delete") $("clear").click();
    else if (key === "?") $("keys-dialog").showModal();
    else if (key === "Escape") {
      this.playing = false;
      this.viewer.drawing = null;
      if (this.busy) this.ask("cancel");
    } else return false;
    return true;
  }
}

/** @type {Record<string, string>} */
const FORMATS = {
  davis: "Palette PNGs", binary: "Masks as PNGs", overlay: "Overlay video",
  coco: "COCO JSON", ytvis: "YouTube-VIS", cvat: "CVAT XML", cutout: "Cut-outs", csv: "Table (CSV)",
};

/** @param {string} selector @param {(button: HTMLElement) => boolean} chosen */
function check(selector, chosen) {
  for (const button of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(selector))) {
    button.setAttribute("aria-checked", String(chosen(button)));
  }
}

/** At most 2000 points of a line. @param {number[][]} points */
function thinned(points) {
  const step = Math.ceil(points.length / 2000);
  return points.filter((_, n) => n % step === 0 || n === points.length - 1);
}

const app = new App();
Object.assign(window, { fastfss: app }); // for the curious, and for tests
app.start().catch(app.fail);
