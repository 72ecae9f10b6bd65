// Where objects are visible, and where something is said of them: a row for each object.

const ROW = 12;

/**
 * @param {HTMLCanvasElement} canvas
 * @param {any} state of the session
 * @param {number} frame the one that is shown
 */
export function drawTracks(canvas, state, frame) {
  const rows = state.count > 1 && !state.live ? Math.min(state.objects.length, 8) : 0;
  canvas.style.height = rows ? `${rows * ROW + 4}px` : "0";
  if (!rows) return;
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.round((rows * ROW + 4) * ratio);
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const step = width / state.count;
  state.objects.slice(0, rows).forEach((/** @type {any} */ object, /** @type {number} */ row) => {
    const top = row * ROW + 2;
    context.fillStyle = "#2a2f38";
    context.fillRect(0, top, width, ROW - 3);
    context.fillStyle = `rgb(${object.colour})`;
    for (const [first, last] of object.visible) {
      context.fillRect(first * step, top, Math.max(1, (last - first + 1) * step), ROW - 3);
    }
    for (const [at, number] of state.prompted) {
      if (number !== object.id) continue;
      context.fillStyle = "#fff";
      context.fillRect((at + 0.5) * step - 3, top - 1, 6, ROW - 1);
      context.fillStyle = "#000";
      context.fillRect((at + 0.5) * step - 1.5, top + 1, 3, ROW - 5);
    }
  });
  context.fillStyle = "#ffd23f";
  context.fillRect((frame + 0.5) * step - 0.75, 0, 1.5, rows * ROW + 4);
}

/** The frame, with a prompt if one is near, at a place of the tracks.
 * @param {HTMLCanvasElement} canvas @param {any} state @param {number} x */
export function frameAt(canvas, state, x) {
  const step = canvas.clientWidth / state.count;
  const near = state.prompted
    .map((/** @type {number[]} */ [frame]) => ({ frame, away: Math.abs((frame + 0.5) * step - x) }))
    .sort((/** @type {any} */ a, /** @type {any} */ b) => a.away - b.away)[0];
  if (near && near.away < 6) return near.frame;
  return Math.min(state.count - 1, Math.max(0, Math.floor(x / step)));
}
