// A canvas with a frame, its masks and its prompts; what the pointer does on it.

import { paint } from "./masks.js";

/**
 * @typedef {{object: number, kind: string, positive: boolean, points: number[][], width?: number}} Prompt
 * @typedef {{kind: string, positive: boolean, points: number[][]}} Drawn
 */

export class Viewer {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{drawn: (mark: Drawn) => void}} to called with each mark that is finished
   */
  constructor(canvas, to) {
    this.canvas = canvas;
    this.to = to;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    /** @type {CanvasImageSource | null} */
    this.picture = null;
    /** @type {[number, number]} width and height of the frame */
    this.size = [1, 1];
    this.layer = document.createElement("canvas");
    /** @type {import("./masks.js").Masks | null} */
    this.masks = null;
    /** @type {Map<number, number[]>} */
    this.colours = new Map();
    /** @type {Prompt[]} */
    this.prompts = [];
    /** @type {Drawn | null} */
    this.drawing = null;
    this.view = "colours";
    this.tool = "click";
    this.positive = true;
    this.width = 12;
    this.colour = [255, 255, 255];
    this.zoom = 1;
    this.centre = [0.5, 0.5]; // the part of the frame that is in the middle
    /** @type {Map<number, {x: number, y: number}>} */
    this.pointers = new Map();
    this.waiting = false;
    /** @type {[number, number] | null} */
    this.cursor = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
    this.listen();
  }

  /** @param {CanvasImageSource} picture @param {number} width @param {number} height */
  setPicture(picture, width, height) {
    this.picture = picture;
    if (this.size[0] !== width || this.size[1] !== height) {
      this.size = [width, height];
      this.fit();
    }
    this.draw();
  }

  /** @param {import("./masks.js").Masks | null} masks */
  setMasks(masks) {
    this.masks = masks;
    this.paintMasks();
  }

  paintMasks() {
    const { masks, layer } = this;
    if (masks) {
      if (layer.width !== masks.width || layer.height !== masks.height) {
        layer.width = masks.width;
        layer.height = masks.height;
      }
      const context = /** @type {CanvasRenderingContext2D} */ (layer.getContext("2d"));
      const image = context.createImageData(masks.width, masks.height);
      paint(image, masks.labels, this.colours, this.view);
      context.putImageData(image, 0, 0);
    }
    this.draw();
  }

  fit() {
    this.zoom = 1;
    this.centre = [0.5, 0.5];
    this.draw();
  }

  /** From the frame's pixels to the canvas's. */
  place() {
    const box = this.canvas.getBoundingClientRect();
    const [width, height] = this.size;
    const scale = Math.min(box.width / width, box.height / height) * this.zoom;
    return {
      scale,
      left: box.width / 2 - this.centre[0] * width * scale,
      top: box.height / 2 - this.centre[1] * height * scale,
    };
  }

  /** @param {{clientX: number, clientY: number}} event @returns {[number, number]} */
  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const { scale, left, top } = this.place();
    return [(event.clientX - box.left - left) / scale, (event.clientY - box.top - top) / scale];
  }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.drawNow();
    });
  }

  drawNow() {
    const { canvas, context } = this;
    const ratio = window.devicePixelRatio || 1;
    const box = canvas.getBoundingClientRect();
    const width = Math.max(1, Math.round(box.width * ratio));
    const height = Math.max(1, Math.round(box.height * ratio));
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, box.width, box.height);
    if (!this.picture) return;
    const { scale, left, top } = this.place();
    const [w, h] = this.size;
    context.imageSmoothingEnabled = scale < 2;
    context.drawImage(this.picture, left, top, w * scale, h * scale);
    if (this.masks && this.view !== "hidden") {
      context.drawImage(this.layer, left, top, w * scale, h * scale);
    }
    for (const prompt of this.prompts) this.drawMark(prompt, this.colours.get(prompt.object));
    if (this.drawing) this.drawMark(this.drawing, this.colour);
    if (this.cursor) this.drawCursor(this.cursor);
  }

  /** The keyboard's. @param {[number, number]} cursor */
  setCursor(cursor) {
    this.cursor = cursor;
    this.draw();
  }

  /** @param {[number, number]} cursor */
  drawCursor([x, y]) {
    const { context } = this;
    const { scale, left, top } = this.place();
    const [u, v] = [left + x * scale, top + y * scale];
    for (const [width, colour] of /** @type {[number, string][]} */ ([[4, "#000"], [2, "#ffd23f"]])) {
      context.beginPath();
      context.moveTo(u - 10, v);
      context.lineTo(u + 10, v);
      context.moveTo(u, v - 10);
      context.lineTo(u, v + 10);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    }
  }

  /** @param {Drawn & {width?: number}} mark @param {number[]} [colour] */
  drawMark(mark, colour = [255, 255, 255]) {
    const { context } = this;
    const { scale, left, top } = this.place();
    const at = mark.points.map(([x, y]) => [left + x * scale, top + y * scale]);
    const sign = mark.positive ? "#46c96b" : "#ff5340";
    if (mark.kind === "point") {
      for (const [x, y] of at) {
        context.beginPath();
        context.arc(x, y, 7, 0, 2 * Math.PI);
        context.fillStyle = sign;
        context.fill();
        context.lineWidth = 2;
        context.strokeStyle = `rgb(${colour})`;
        context.stroke();
        context.beginPath(); // + or -: the sign is no matter of colour alone
        context.moveTo(x - 4, y);
        context.lineTo(x + 4, y);
        if (mark.positive) {
          context.moveTo(x, y - 4);
          context.lineTo(x, y + 4);
        }
        context.strokeStyle = "#000";
        context.stroke();
      }
    } else if (mark.kind === "box" && at.length > 1) {
      context.lineWidth = 2;
      context.setLineDash([6, 4]);
      context.strokeStyle = `rgb(${colour})`;
      context.strokeRect(at[0][0], at[0][1], at[1][0] - at[0][0], at[1][1] - at[0][1]);
      context.setLineDash([]);
    } else if (mark.kind === "stroke" || mark.kind === "brush") {
      context.lineWidth = Math.max(1, (mark.width ?? this.width) * scale);
      context.lineCap = context.lineJoin = "round";
      context.globalAlpha = 0.55;
      context.strokeStyle = mark.kind === "brush" && mark.positive ? `rgb(${colour})` : sign;
      context.beginPath();
      at.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
      if (at.length === 1) context.lineTo(at[0][0] + 0.1, at[0][1]);
      context.stroke();
      context.globalAlpha = 1;
    }
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", (event) => this.cancel(event));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomAt(event, Math.exp(-event.deltaY * 0.0015));
    }, { passive: false });
  }

  /** @param {{clientX: number, clientY: number}} event @param {number} factor */
  zoomAt(event, factor) {
    const [x, y] = this.point(event);
    const zoom = Math.min(20, Math.max(1, this.zoom * factor));
    const part = 1 - this.zoom / zoom;
    const [width, height] = this.size;
    this.centre[0] += (x / width - this.centre[0]) * part;
    this.centre[1] += (y / height - this.centre[1]) * part;
    this.zoom = zoom;
    if (zoom === 1) this.centre = [0.5, 0.5];
    this.draw();
  }

  /** @param {PointerEvent} event */
  down(event) {
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (this.pointers.size > 1 || !this.picture) {
      this.drawing = null; // two fingers: zoom
      return;
    }
    if (event.button === 1 || this.tool === "pan") return;
    const positive = event.button === 2 ? false : this.positive;
    const [x, y] = this.point(event);
    if (x < 0 || y < 0 || x >= this.size[0] || y >= this.size[1]) return;
    const kind = { click: "point", box: "box", scribble: "stroke", brush: "brush" }[this.tool];
    this.drawing = { kind: kind ?? "point", positive, points: [[x, y]] };
    this.draw();
  }

  /** @param {PointerEvent} event */
  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1] ?? before;
      const length = (/** @type {{x: number, y: number}} */ p) => Math.hypot(p.x - other.x, p.y - other.y);
      const middle = { clientX: (now.x + other.x) / 2, clientY: (now.y + other.y) / 2 };
      this.zoomAt(middle, length(now) / Math.max(1, length(before)));
      this.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    } else if (!this.drawing) {
      this.pan(now.x - before.x, now.y - before.y);
    } else {
      const [width, height] = this.size;
      const point = this.point(event);
      point[0] = Math.min(width - 0.01, Math.max(0, point[0]));
      point[1] = Math.min(height - 0.01, Math.max(0, point[1]));
      if (this.drawing.kind === "box") this.drawing.points[1] = point;
      else if (this.drawing.kind !== "point") this.drawing.points.push(point);
      this.draw();
    }
    this.pointers.set(event.pointerId, now);
  }

  /** @param {number} x @param {number} y in pixels of the page */
  pan(x, y) {
    if (this.zoom === 1) return;
    const { scale } = this.place();
    this.centre[0] -= x / (this.size[0] * scale);
    this.centre[1] -= y / (this.size[1] * scale);
    this.draw();
  }

  /** @param {PointerEvent} event */
  up(event) {
    this.pointers.delete(event.pointerId);
    const mark = this.drawing;
    this.drawing = null;
    this.draw();
    if (mark) this.to.drawn(mark);
  }

  /** @param {PointerEvent} event */
  cancel(event) {
    this.pointers.delete(event.pointerId);
    this.drawing = null;
    this.draw();
  }

  /**
   * Draw a line into the label map.
   * @param {Drawn} mark
   * @param {number} number
   * @returns {Uint8Array} the label map with it
   */
  brushed(mark, number) {
    const [width, height] = this.size;
    const sheet = new OffscreenCanvas(width, height);
    const context = /** @type {OffscreenCanvasRenderingContext2D} */ (sheet.getContext("2d"));
    context.lineWidth = this.width;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    mark.points.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
    if (mark.points.length === 1) context.lineTo(mark.points[0][0] + 0.1, mark.points[0][1]);
    context.stroke();
    const drawn = context.getImageData(0, 0, width, height).data;
    const labels = this.masks ? this.masks.labels.slice() : new Uint8Array(width * height);
    for (let n = 0; n < labels.length; n++) {
      if (drawn[4 * n + 3] < 128) continue;
      if (mark.positive) labels[n] = number;
      else if (labels[n] === number) labels[n] = 0;
    }
    return labels;
  }
}
