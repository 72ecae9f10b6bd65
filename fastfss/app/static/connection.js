// The WebSocket of a session: commands out, replies and events in; it comes back when it breaks.

const WAIT_MOST = 5000; // milliseconds between two attempts

export class Connection {
  /**
   * @param {string} session
   * @param {{message: (plain: any) => void, masks: (data: ArrayBuffer) => void,
   *          link: (on: boolean, gone: boolean) => void}} to
   */
  constructor(session, to) {
    this.session = session;
    this.to = to;
    this.number = 0;
    /** @type {Map<number, {resolve: (plain: any) => void, reject: (error: Error) => void}>} */
    this.waiting = new Map();
    this.attempts = 0;
    this.closed = false;
    this.open();
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    this.socket = new WebSocket(`${scheme}//${location.host}/api/sessions/${this.session}/live`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      this.attempts = 0;
      this.to.link(true, false);
    };
    this.socket.onmessage = (event) => {
      if (typeof event.data === "string") this.take(JSON.parse(event.data));
      else this.to.masks(event.data);
    };
    this.socket.onclose = () => this.lost();
  }

  /** @param {any} plain */
  take(plain) {
    if (plain.gone) {
      this.closed = true;
      this.to.link(false, true);
    }
    const waiting = plain.id == null ? undefined : this.waiting.get(plain.id);
    if (waiting && (plain.kind === "reply" || plain.kind === "error")) {
      this.waiting.delete(plain.id);
      if (plain.kind === "reply") waiting.resolve(plain);
      else waiting.reject(new Error(plain.message));
    } else {
      this.to.message(plain);
    }
  }

  lost() {
    for (const { reject } of this.waiting.values()) reject(new Error("the connection broke"));
    this.waiting.clear();
    if (this.closed) return;
    this.to.link(false, false);
    const wait = Math.min(WAIT_MOST, 250 * 2 ** this.attempts++);
    setTimeout(() => !this.closed && this.open(), wait);
  }

  /**
   * @param {string} what
   * @param {object} [fields]
   * @returns {Promise<any>} the reply
   */
  ask(what, fields = {}) {
    const id = ++this.number;
    return new Promise((resolve, reject) => {
      if (this.socket.readyState !== WebSocket.OPEN) {
        reject(new Error("not connected"));
        return;
      }
      this.waiting.set(id, { resolve, reject });
      this.socket.send(JSON.stringify({ v: 1, id, do: what, ...fields }));
    });
  }

  /** Mask frames were drawn: more may come. */
  acknowledge() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send('{"v":1,"do":"ack"}');
  }

  /** @param {ArrayBuffer} data */
  sendBytes(data) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(data);
  }

  close() {
    this.closed = true;
    this.socket.close();
  }
}
