// The dialog that opens something: a sample, an earlier session, files of this device.

import { openFiles, request } from "./api.js";
import { $, make } from "./panels.js";

export class OpenDialog {
  /**
   * @param {{open: (source: import("./api.js").Source) => Promise<void>,
   *          connect: (session: string) => Promise<void>, fail: (error: any) => void}} to
   */
  constructor(to) {
    this.to = to;
  }

  async show() {
    const { open, connect, fail } = this.to;
    const dialog = $("open-dialog");
    const { sources, sessions } = await request("GET", "/api/sources");
    const row = (/** @type {string} */ title, /** @type {() => void} */ go) => make("li", {}, [
      make("button", { type: "button", className: "pick", textContent: title, onclick: () => {
        dialog.close();
        go();
      } }),
    ]);
    $("sources").replaceChildren(...sources.map((/** @type {any} */ source) => row(source.title,
      () => open(source.source).catch(fail))));
    $("earlier").replaceChildren(...sessions.map((/** @type {any} */ { id, title, changed }) => row(
      `${title}, ${new Date(changed * 1000).toLocaleString()}`,
      () => connect(id).catch(fail))));
    if (!dialog.open) dialog.showModal();
  }

  /** @param {File[]} files */
  async upload(files) {
    const say = (/** @type {string} */ text) => { $("upload-text").textContent = text; };
    try {
      const session = await openFiles(files, say);
      $("open-dialog").close();
      await this.to.connect(session);
      say("");
    } catch (error) {
      say(/** @type {Error} */ (error).message);
    }
  }
}
