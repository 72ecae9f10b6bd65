// Pictures of frames, the last ones kept.

const KEPT = 48;

export class Frames {
  /** @param {string} session */
  constructor(session) {
    this.session = session;
    /** @type {Map<number, Promise<CanvasImageSource>>} */
    this.kept = new Map();
  }

  /** @param {number} number @returns {Promise<CanvasImageSource>} */
  get(number) {
    const found = this.kept.get(number) ?? this.load(number);
    this.kept.delete(number); // the last one used is the last in order
    this.put(number, found);
    return found;
  }

  /** @param {number} number @param {Promise<CanvasImageSource>} picture */
  put(number, picture) {
    this.kept.set(number, picture);
    if (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
  }

  /** @param {number} number @returns {Promise<CanvasImageSource>} */
  async load(number) {
    const answer = await fetch(`/api/sessions/${this.session}/frames/${number}.jpg`);
    if (!answer.ok) {
      this.kept.delete(number);
      throw new Error((await answer.json()).message);
    }
    return createImageBitmap(await answer.blob());
  }
}
