// The page: one session at a time, and what is shown of it.

import { openSession, request } from "./api.js";
import { Camera } from "./camera.js";
import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { Frames } from "./frames.js";
import { Keyboard } from "./keyboard.js";
import { commandOf } from "./marks.js";
import { decodeMasks } from "./masks.js";
import { OpenDialog } from "./opening.js";
import { $, showObjects, showProgress, showState, showStats, showSupports } from "./panels.js";
import { SupportDialog } from "./support.js";
import { drawTracks } from "./timeline.js";
import { Viewer } from "./viewer.js";

const HINT = "Click on something to segment it. Right click, or “− not it”, takes away.";
const PLAYED = 24; // frames a second at most, where the video says nothing
const TOLD = 6000; // milliseconds that a message stays

export class App {
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
    /** @type {((value?: unknown) => void)[]} */
    this.masksWaiting = [];
    this.viewer = new Viewer($("canvas"), { drawn: (mark) => this.mark(mark) });
    this.support = new SupportDialog((session) => this.useSupport(session));
    this.opening = new OpenDialog({
      open: (source) => this.open(source),
      connect: (session) => this.connect(session),
      fail: this.fail,
    });
    this.controls = new Controls(this);
    this.keyboard = new Keyboard(this);
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
    if (gone) this.opening.show().catch(this.fail);
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
    showState(this.session, state);
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
    showProgress(plain);
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

  /** @param {number} by */
  step(by) {
    this.playing = false;
    this.show(this.frame + by).catch(this.fail);
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
    if (this.camera?.running) this.camera.freeze();
    $("hint").hidden = true;
    const { frame } = this;
    try {
      if (!this.object) this.object = (await /** @type {Connection} */ (this.link).ask("object.add")).object;
      this.asked = performance.now();
      const command = commandOf(mark, this.viewer, { frame, object: this.object });
      const reply = command && (await this.link?.ask(command.what, command.fields));
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

  /** Masks of a palette PNG for this frame, or of COCO's JSON or CVAT's XML. @param {File} file */
  async importMasks(file) {
    const name = encodeURIComponent(file.name);
    const path = `/api/sessions/${this.session}/annotations?name=${name}&frame=${this.frame}`;
    const { frames } = await request("PUT", path, file);
    if (!frames.includes(this.frame)) await this.show(frames[0]);
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
    this.setPrompts([]);
    this.camera.goOn().catch(this.fail);
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

  // ---- Messages

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
}

const app = new App();
Object.assign(window, { fastfss: app }); // for the curious, and for tests
app.start().catch(app.fail);
