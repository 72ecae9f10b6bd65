// Mask frames of the server: run lengths in, label maps and colours out. See protocol.py.

/**
 * @typedef {{frame: number, seq: number, propagated: boolean, width: number, height: number,
 *            labels: Uint8Array}} Masks
 */

/** @param {ArrayBuffer} data @returns {Masks} */
export function decodeMasks(data) {
  const view = new DataView(data);
  const bytes = new Uint8Array(data);
  const count = view.getUint16(2, true);
  const width = view.getUint16(12, true);
  const height = view.getUint16(14, true);
  const labels = new Uint8Array(width * height);
  let at = 16;
  for (let n = 0; n < count; n++) {
    const number = view.getUint16(at, true);
    const end = at + 6 + view.getUint32(at + 2, true);
    at += 6;
    let place = 0;
    for (let inside = false; at < end; inside = !inside) {
      let length = 0;
      let factor = 1;
      let byte;
      do {
        byte = bytes[at++];
        length += (byte & 127) * factor;
        factor *= 128;
      } while (byte & 128);
      if (inside) labels.fill(number, place, place + length);
      place += length;
    }
  }
  return {
    frame: view.getUint32(4, true), seq: view.getUint32(8, true),
    propagated: (bytes[1] & 1) === 1, width, height, labels,
  };
}

/**
 * The runs of one object as the server takes them, in base64.
 * @param {Uint8Array} labels
 * @param {number} number
 */
export function encodeRuns(labels, number) {
  const bytes = [];
  let inside = false;
  let length = 0;
  const flush = () => {
    while (length >= 128) {
      bytes.push((length & 127) | 128);
      length = Math.floor(length / 128);
    }
    bytes.push(length);
    length = 0;
  };
  for (let n = 0; n < labels.length; n++) {
    if ((labels[n] === number) !== inside) {
      flush();
      inside = !inside;
    }
    length++;
  }
  flush();
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

export const VIEWS = ["colours", "contours", "masks only", "highlight", "hidden"];

/**
 * Draw a label map.
 * @param {ImageData} image of the same size
 * @param {Uint8Array} labels
 * @param {Map<number, number[]>} colours
 * @param {string} view one of VIEWS
 */
export function paint(image, labels, colours, view) {
  const { width, height } = image;
  const out = new Uint32Array(image.data.buffer);
  const solid = new Uint32Array(256);
  const soft = new Uint32Array(256);
  for (const [number, [red, green, blue]] of colours) {
    const colour = (blue << 16) | (green << 8) | red;
    solid[number] = (0xff000000 | colour) >>> 0;
    soft[number] = (0x7a000000 | colour) >>> 0;
  }
  const outside = { "masks only": 0xff000000, highlight: 0xc8101010 }[view] ?? 0;
  const inside = view === "colours" ? soft : view === "masks only" ? solid : new Uint32Array(256);
  for (let y = 0, n = 0; y < height; y++) {
    for (let x = 0; x < width; x++, n++) {
      const label = labels[n];
      if (label === 0) {
        out[n] = outside;
        continue;
      }
      // The contour: two pixels wide, so that it shows on any colour.
      const edge = (x > 1 && labels[n - 2] !== label) || (x < width - 2 && labels[n + 2] !== label)
        || (y > 1 && labels[n - 2 * width] !== label)
        || (y < height - 2 && labels[n + 2 * width] !== label);
      out[n] = edge ? solid[label] : inside[label];
    }
  }
}
