// What is shown beside the frame: the session's state, lists of objects and supports, figures.

/** @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

/**
 * @param {string} tag
 * @param {object} [fields]
 * @param {(Node | string)[]} [inside]
 * @returns {any}
 */
export function make(tag, fields = {}, inside = []) {
  const found = Object.assign(document.createElement(tag), fields);
  found.append(...inside);
  return found;
}

/** @param {number[]} colour */
function swatch(colour) {
  const found = make("span", { className: "swatch" });
  found.style.background = `rgb(${colour})`;
  return found;
}

/** @param {string} session @param {any} state */
export function showState(session, state) {
  $("source").textContent = `${state.name}, ${state.size[1]} × ${state.size[0]}`;
  $("undo").disabled = !state.can_undo;
  $("redo").disabled = !state.can_redo;
  $("slider").max = String(Math.max(0, state.count - 1));
  const still = state.count < 2 && !state.live;
  $("time").hidden = still;
  for (const id of ["play", "back", "next", "propagate", "propagate-back", "propagate-both"]) {
    $(id).disabled = still || state.live;
  }
  $("slider").disabled = still || state.live;
  $("commit").disabled = $("clear").disabled = !state.masked.length;
  const link = $("export");
  link.setAttribute("aria-disabled", String(!state.masked.length));
  if (state.masked.length) link.href = `/api/sessions/${session}/export/${$("format").value}`;
  else link.removeAttribute("href");
}

/** @param {any} plain of a propagation */
export function showProgress(plain) {
  $("progress").value = plain.total ? plain.done / plain.total : 1;
  const percent = plain.total ? Math.round((100 * plain.done) / plain.total) : 100;
  $("progress-text").textContent =
    `${plain.done} of ${plain.total} frames, ${percent} %, ${plain.fps} a second`;
}

/**
 * @param {any} state
 * @param {number} chosen
 * @param {{choose: (n: number) => void, rename: (n: number, name: string) => void,
 *          remove: (n: number, name: string) => void}} to
 */
export function showObjects(state, chosen, to) {
  const rows = state.objects.map((/** @type {any} */ object) => {
    const { id, name, colour } = object;
    const pick = make("button", { type: "button", className: "pick", onclick: () => to.choose(id) },
      [swatch(colour), ` ${id}  ${name}`]);
    pick.setAttribute("aria-pressed", String(id === chosen));
    pick.ondblclick = () => to.rename(id, name);
    const rename = make("button", { type: "button", className: "small", textContent: "Name",
      onclick: () => to.rename(id, name) });
    rename.setAttribute("aria-label", `Rename ${name}`);
    const remove = make("button", { type: "button", className: "small", textContent: "×",
      onclick: () => to.remove(id, name) });
    remove.setAttribute("aria-label", `Remove ${name}`);
    return make("li", { className: id === chosen ? "chosen" : "" }, [pick, rename, remove]);
  });
  if (!rows.length) rows.push(make("li", { textContent: "The first click makes one." }));
  $("objects").replaceChildren(...rows);
}

/**
 * @param {string} session
 * @param {any} state
 * @param {{jump: (frame: number) => void, forget: (support: number) => void}} to
 */
export function showSupports(session, state, to) {
  const colours = new Map(state.objects.map((/** @type {any} */ o) => [o.id, o.colour]));
  const rows = state.supports.map((/** @type {any} */ support) => {
    const { seq, frame, image, name, objects } = support;
    const path = image === null ? `frames/${frame}.jpg?height=64` : `images/${image}.jpg?height=64`;
    const title = image === null ? `Frame ${frame + 1}` : name;
    const picture = make("img", { src: `/api/sessions/${session}/${path}`, alt: title });
    const dots = objects.filter((/** @type {number} */ n) => colours.has(n))
      .map((/** @type {number} */ n) => swatch(/** @type {any} */ (colours.get(n))));
    const pick = make("button", { type: "button", className: "pick", disabled: frame === null,
      onclick: () => to.jump(frame) }, [title]);
    const forget = make("button", { type: "button", className: "small", textContent: "×",
      onclick: () => to.forget(seq) });
    forget.setAttribute("aria-label", `Forget ${title}`);
    return make("li", {}, [picture, ...dots, pick, forget]);
  });
  if (!rows.length) {
    const text = "None. Keep a good frame, or show the object in any other image.";
    rows.push(make("li", { textContent: text }));
  }
  $("supports").replaceChildren(...rows);
}

/** @param {any} stats @param {any} state @param {number} drawn milliseconds from click to mask */
export function showStats(stats, state, drawn) {
  const ms = (/** @type {any} */ stage) => (stage
    ? `${(stage.p50 * 1000).toFixed(0)} / ${(stage.p95 * 1000).toFixed(0)} ms` : "-");
  const mib = (/** @type {number} */ bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  const rows = [
    ["Last click", drawn ? `${drawn.toFixed(0)} ms` : "-"],
    ["Clicks, p50 / p95", stats.answers.p50 === undefined ? "-" : ms(stats.answers)],
    ["Encoding", ms(stats.seconds.encode)],
    ["Matching", ms(stats.seconds.match)],
    ["Frames with prompts", stats.prompted],
    ["Supports", stats.supports],
    ["Frames in memory", `${stats.cache.frames}, ${mib(stats.cache.bytes)}`],
    ["Masks", `${stats.results.frames}, ${(stats.results.bytes / 1024).toFixed(0)} KiB`],
    ["Method", state.model.method],
    ["Encoder", state.model.encoder ?? "-"],
  ];
  $("stats").replaceChildren(...rows.flatMap(([name, value]) => [
    make("dt", { textContent: name }), make("dd", { textContent: value }),
  ]));
}
