// Buttons, sliders, and files that are chosen or dropped.

import { request } from "./api.js";
import { VIEWS } from "./masks.js";
import { $, make } from "./panels.js";
import { frameAt } from "./timeline.js";

/** @type {Record<string, string>} */
const FORMATS = {
  davis: "Palette PNGs", binary: "Masks as PNGs", overlay: "Overlay video",
  coco: "COCO JSON", ytvis: "YouTube-VIS", cvat: "CVAT XML", cutout: "Cut-outs", csv: "Table (CSV)",
};

export class Controls {
  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.bindTools();
    this.bindTime();
    this.bindLists();
    this.bindFiles();
    this.setTool("click");
    this.setSign(true);
  }

  /** @param {string} tool */
  setTool(tool) {
    this.app.viewer.tool = tool;
    check("[data-tool]", (button) => button.dataset.tool === tool);
  }

  /** @param {boolean} positive */
  setSign(positive) {
    this.app.viewer.positive = positive;
    check("[data-sign]", (button) => (button.dataset.sign === "1") === positive);
  }

  /** @param {string} view */
  setView(view) {
    const { viewer } = this.app;
    viewer.view = view;
    $("view").textContent = `View: ${view}`;
    viewer.paintMasks();
  }

  bindTools() {
    const { app } = this;
    const { viewer } = app;
    for (const button of buttons("[data-tool]")) {
      button.onclick = () => this.setTool(button.dataset.tool ?? "click");
    }
    for (const button of buttons("[data-sign]")) {
      button.onclick = () => this.setSign(button.dataset.sign === "1");
    }
    $("width").oninput = () => { viewer.width = Number($("width").value); };
    on("undo", () => app.move("undo"));
    on("redo", () => app.move("redo"));
    on("keys", () => $("keys-dialog").showModal());
    on("clear", () => app.ask("clear", { frame: app.frame, object: app.object || null }));
    on("view", () => this.setView(VIEWS[(VIEWS.indexOf(viewer.view) + 1) % VIEWS.length]));
    on("fit", () => viewer.fit());
  }

  bindTime() {
    const { app } = this;
    on("back", () => app.step(-1));
    on("next", () => app.step(1));
    on("play", () => app.play());
    on("propagate", () => app.propagate("forward"));
    on("propagate-back", () => app.propagate("backward"));
    on("propagate-both", () => app.propagate("both"));
    on("stop", () => app.ask("cancel"));
    on("camera-frame", () => (app.camera?.running ? app.camera.freeze() : app.goOn()));
    $("slider").oninput = () => app.show(Number($("slider").value)).catch(app.fail);
    $("tracks").onclick = (/** @type {MouseEvent} */ event) => {
      app.show(frameAt($("tracks"), app.state, event.offsetX)).catch(app.fail);
    };
    window.addEventListener("resize", () => app.drawTime());
  }

  bindLists() {
    const { app } = this;
    on("add-object", () => app.addObject());
    on("commit", () => app.ask("commit", { frame: app.frame }));
    on("add-support", () => app.support.open(app.viewer.colour));
    $("format").onchange = () => app.state && app.takeState(app.state);
    request("GET", "/api/sources").then(({ exports }) => {
      $("format").replaceChildren(...exports.map((/** @type {string} */ name) => make("option",
        { value: name, textContent: FORMATS[name] ?? name })));
      if (app.state) app.takeState(app.state);
    }, app.fail);
  }

  bindFiles() {
    const { app } = this;
    on("open", () => app.opening.show().catch(app.fail));
    on("camera", () => {
      $("open-dialog").close();
      app.open({ kind: "camera" }).catch(app.fail);
    });
    $("files").onchange = () => {
      const files = [...$("files").files];
      $("files").value = "";
      if (files.length) app.opening.upload(files);
    };
    $("import").onchange = () => {
      const file = $("import").files[0];
      $("import").value = "";
      if (file) app.importMasks(file).catch(app.fail);
    };
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      const files = [...(event.dataTransfer?.files ?? [])];
      if (files.length) app.opening.show().then(() => app.opening.upload(files), app.fail);
    });
  }
}

/** @param {string} id @param {() => void} go */
function on(id, go) {
  $(id).onclick = go;
}

/** @param {string} selector @returns {NodeListOf<HTMLElement>} */
function buttons(selector) {
  return document.querySelectorAll(selector);
}

/** @param {string} selector @param {(button: HTMLElement) => boolean} chosen */
function check(selector, chosen) {
  for (const button of buttons(selector)) {
    button.setAttribute("aria-checked", String(chosen(button)));
  }
}
