// A mark that was drawn, as a command to the server.

import { encodeRuns } from "./masks.js";

const POINTS = 2000; // of a line, at most
const SIDE = 2; // pixels: a smaller box is a slip

/**
 * @param {import("./viewer.js").Drawn} mark
 * @param {import("./viewer.js").Viewer} viewer where it was drawn
 * @param {{frame: number, object: number}} where
 * @returns {{what: string, fields: object} | null} null for a mark that says nothing
 */
export function commandOf(mark, viewer, where) {
  const { points, positive } = mark;
  if (mark.kind === "point") return { what: "clicks", fields: { ...where, points, positive } };
  if (mark.kind === "stroke") {
    const { width } = viewer;
    return { what: "scribble", fields: { ...where, path: thinned(points), positive, width } };
  }
  if (mark.kind === "box") {
    const [[x0, y0], [x1, y1] = [x0, y0]] = points;
    const box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
    const large = box[2] - box[0] > SIDE && box[3] - box[1] > SIDE;
    return large ? { what: "box", fields: { ...where, box } } : null;
  }
  const labels = viewer.brushed(mark, where.object);
  return { what: "mask", fields: { ...where, runs: encodeRuns(labels, where.object) } };
}

/** @param {number[][]} points */
function thinned(points) {
  const step = Math.ceil(points.length / POINTS);
  return points.filter((_, n) => n % step === 0 || n === points.length - 1);
}
