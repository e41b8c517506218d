/** The plain HTTP side. Addresses are relative, so that the page also works behind a path. */

const query = new URLSearchParams(location.search);
/** What a server that is reachable from elsewhere asks for; it comes in the page's own address (?token=..). */
export const token = query.get("token") ?? "";
/** Where the socket is. */
export const socketAddress = new URL("ws", location.href.split("?")[0]).href.replace(/^http/, "ws");

const headers = token ? { Authorization: `Bearer ${token}` } : {};

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
  return answer(await fetch(`api/${path}`, { headers }));
}

/** @param {"pictures" | "depth" | "motions"} kind @param {Blob} file */
export async function upload(kind, file) {
  const type = file.type || "application/octet-stream";
  return answer(await fetch(`api/${kind}`, { method: "POST", body: file, headers: { ...headers, "Content-Type": type } }));
}
