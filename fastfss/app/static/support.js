// An object in another image: clicks on it in a session of its own, then its mask is a support.

import { openFiles, request } from "./api.js";
import { Connection } from "./connection.js";
import { Frames } from "./frames.js";
import { decodeMasks } from "./masks.js";
import { $ } from "./panels.js";
import { Viewer } from "./viewer.js";

export class SupportDialog {
  /** @param {(session: string) => Promise<void>} use called with the session of the image */
  constructor(use) {
    this.use = use;
    /** @type {Connection | null} */
    this.link = null;
    this.hasObject = false;
    this.viewer = new Viewer($("support-canvas"), { drawn: (mark) => this.mark(mark) });
    $("support-file").onchange = () => this.choose($("support-file").files[0]);
    $("support-cancel").onclick = () => this.close();
    $("support-dialog").addEventListener("close", () => this.closed());
    $("support-undo").onclick = () => this.link?.ask("undo").then(() => this.show(), this.fail);
    $("support-sign").onclick = () => this.flip();
    $("support-use").onclick = () => this.finish();
    this.fail = (/** @type {Error} */ error) => this.say(error.message);
  }

  /** @param {number[]} colour of the object */
  open(colour) {
    this.viewer.colours = new Map([[1, colour]]);
    this.viewer.colour = colour;
    this.say("Choose an image, then click on the same object in it.");
    $("support-dialog").showModal();
  }

  close() {
    $("support-dialog").close();
  }

  closed() {
    if (this.link) {
      const { session } = this.link;
      this.link.close();
      request("DELETE", `/api/sessions/${session}`).catch(() => {}); // the support has a copy
    }
    this.link = null;
    this.hasObject = false;
    this.viewer.picture = null;
    this.viewer.prompts = [];
    this.viewer.setMasks(null);
    $("support-file").value = "";
    $("support-use").disabled = $("support-undo").disabled = true;
  }

  flip() {
    const positive = (this.viewer.positive = !this.viewer.positive);
    $("support-sign").textContent = positive ? "+ object" : "− not it";
    $("support-sign").className = positive ? "plus" : "minus";
  }

  /** @param {File | undefined} file */
  async choose(file) {
    if (!file) return;
    try {
      this.closed();
      const session = await openFiles([file], (text) => this.say(text));
      const picture = /** @type {ImageBitmap} */ (await new Frames(session).get(0));
      this.viewer.setPicture(picture, picture.width, picture.height);
      this.link = new Connection(session, {
        message: (plain) => this.take(plain),
        masks: (data) => this.masks(data),
        link: () => {},
      });
      this.say("Click on the same object.");
    } catch (error) {
      this.fail(/** @type {Error} */ (error));
    }
  }

  /** @param {any} plain */
  take(plain) {
    if (plain.kind === "state") {
      $("support-undo").disabled = !plain.can_undo;
      this.hasObject = plain.objects.length > 0;
    } else if (plain.kind === "error") this.say(plain.message);
  }

  /** @param {ArrayBuffer} data */
  masks(data) {
    const masks = decodeMasks(data);
    this.viewer.setMasks(masks);
    $("support-use").disabled = !masks.labels.includes(1);
    this.link?.acknowledge();
  }

  /** @param {import("./viewer.js").Drawn} mark */
  async mark(mark) {
    const link = this.link;
    if (!link) return;
    try {
      if (!this.hasObject) await link.ask("object.add");
      const reply = await link.ask("clicks",
        { frame: 0, object: 1, points: mark.points, positive: mark.positive });
      this.viewer.prompts = reply.prompts;
      this.viewer.draw();
    } catch (error) {
      this.fail(/** @type {Error} */ (error));
    }
  }

  async show() {
    if (!this.link) return;
    const reply = await this.link.ask("show", { frame: 0 });
    this.viewer.prompts = reply.prompts;
    this.viewer.draw();
  }

  async finish() {
    if (!this.link) return;
    try {
      await this.use(this.link.session);
      this.close();
    } catch (error) {
      this.fail(/** @type {Error} */ (error));
    }
  }

  /** @param {string} text */
  say(text) {
    $("support-text").textContent = text;
  }
}
