/** The plain HTTP side. Addresses are relative, so that the page also works behind a path. */

/** Where the socket is. */
export const socketAddress = new URL("ws", location.href).href.replace(/^http/, "ws");

/** A token in the page's address (?token=..) has become a cookie by now: it is not left for who looks over a shoulder. */
export function hideToken() {
  const address = new URL(location.href);
  if (!address.searchParams.has("token")) return;
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

async function answer(response) {
  if (response.ok) return response.json();
  let text = `The server answered ${response.status} ${response.statusText}.`;
  try {
    text = (await response.json()).text ?? text;
  } catch {
    // No JSON: a proxy's page, say. The status is all there is to tell.
  }
  throw new Error(text);
}

export async function get(path) {
  return answer(await fetch(`api/${path}`));
}

/** @param {"pictures" | "depth" | "motions"} kind @param {Blob} file */
export async function upload(kind, file) {
  const type = file.type || "application/octet-stream";
  return answer(await fetch(`api/${kind}`, { method: "POST", body: file, headers: { "Content-Type": type } }));
}
