/** HTTP requests to the server. Addresses are relative, so that the page also works below a path. */

/** The address of the WebSocket. */
export const socketAddress = new URL("ws", location.href).href.replace(/^http/, "ws");

/** Removes the token from the page's address (?token=...), which is in a cookie by now, so that nobody reads it there. */
export function hideToken() {
  const address = new URL(location.href);
  if (!address.searchParams.has("token")) return;
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

/** @param {Response} response */
async function answer(response) {
  if (response.ok) return response.json();
  let text = `The server answered ${response.status} ${response.statusText}.`;
  try {
    text = (await response.json()).text ?? text;
  } catch {
    // Not JSON, but the page of a proxy, for example: the status is all that is known.
  }
  throw new Error(text);
}

/** @param {string} path */
export async function get(path) {
  return answer(await fetch(`api/${path}`));
}

/** @param {"pictures" | "depth" | "motions"} kind @param {Blob} file */
export async function upload(kind, file) {
  const type = file.type || "application/octet-stream";
  return answer(await fetch(`api/${kind}`, { method: "POST", body: file, headers: { "Content-Type": type } }));
}
