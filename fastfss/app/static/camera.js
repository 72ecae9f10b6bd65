// A webcam: frames go to the server as JPEG, the newest alone, one at a time.

import { $ } from "./panels.js";

const SHORTER_SIDE = 480;
const QUALITY = 0.8;

export class Camera {
  /** @param {(data: ArrayBuffer) => void} send */
  constructor(send) {
    this.send = send;
    this.number = 0;
    this.running = false;
    this.video = document.createElement("video");
    this.video.muted = this.video.playsInline = true;
    /** @type {Map<number, ImageBitmap>} frames that were sent, by their numbers */
    this.sent = new Map();
  }

  async start() {
    if (!navigator.mediaDevices) throw new Error("the browser gives a camera only to https and localhost");
    this.stream = await navigator.mediaDevices.getUserMedia({ video: true, audio: false });
    this.video.srcObject = this.stream;
    await this.video.play();
    const { videoWidth: width, videoHeight: height } = this.video;
    const scale = Math.min(1, SHORTER_SIDE / Math.min(width, height));
    this.sheet = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
  }

  /** Send the frame of now. The next one goes when this one is answered. */
  async shoot() {
    if (!this.sheet) return;
    const number = ++this.number;
    const context = /** @type {OffscreenCanvasRenderingContext2D} */ (this.sheet.getContext("2d"));
    context.drawImage(this.video, 0, 0, this.sheet.width, this.sheet.height);
    const blob = await this.sheet.convertToBlob({ type: "image/jpeg", quality: QUALITY });
    this.sent.set(number, await createImageBitmap(blob));
    const data = new Uint8Array(5 + blob.size);
    data[0] = 2;
    new DataView(data.buffer).setUint32(1, number, true);
    data.set(new Uint8Array(await blob.arrayBuffer()), 5);
    this.send(data.buffer);
  }

  /** The picture of a frame that is answered. @param {number} number */
  take(number) {
    const found = this.sent.get(number);
    for (const old of [...this.sent.keys()]) if (old <= number) this.sent.delete(old);
    return found;
  }

  goOn() {
    this.running = true;
    $("camera-frame").textContent = "Freeze";
    return this.shoot();
  }

  freeze() {
    this.running = false;
    $("camera-frame").textContent = "Go on";
  }

  stop() {
    this.running = false;
    this.stream?.getTracks().forEach((track) => track.stop());
  }
}
