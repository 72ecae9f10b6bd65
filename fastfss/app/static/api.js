// HTTP requests to the server.

/** @typedef {{kind: string, name?: string, id?: string, title?: string}} Source */

/**
 * @param {string} method
 * @param {string} path
 * @param {BodyInit | null} [body]
 * @returns {Promise<any>}
 */
export async function request(method, path, body = null) {
  const answer = await fetch(path, { method, body });
  const text = await answer.text();
  let plain;
  try {
    plain = JSON.parse(text);
  } catch {
    plain = { message: text.slice(0, 200) };
  }
  if (!answer.ok) throw new Error(plain.message || `the server answered ${answer.status}`);
  return plain;
}

/** @param {Source} source @returns {Promise<string>} the session's id */
export async function openSession(source) {
  return (await request("POST", "/api/sessions", JSON.stringify(source))).id;
}

/**
 * Upload a video, or images, and open them.
 * @param {File[]} files
 * @param {(text: string) => void} say
 * @returns {Promise<string>} the session's id
 */
export async function openFiles(files, say) {
  const order = [...files].sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  const { id } = await request("POST", "/api/uploads");
  for (const [number, file] of order.entries()) {
    say(`Uploading ${number + 1} of ${order.length}`);
    const name = encodeURIComponent(file.name);
    await request("PUT", `/api/uploads/${id}/${number}?name=${name}`, file);
  }
  say("Opening");
  const title = order[0].name.replace(/\.[^.]*$/, "").slice(0, 60).trim() || "upload";
  return openSession({ kind: "upload", id, title });
}
