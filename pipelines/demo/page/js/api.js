/** The plain HTTP side. Addresses are relative, so that the page also works behind a path. */

/**
 * What a server that is reachable from elsewhere asks for. It comes once in the page's address (?token=..) and stays as a cookie, which pictures
 * and videos are asked for with as well.
 */
export const token = knownToken();

/** Where the socket is. */
export const socketAddress = new URL("ws", location.href).href.replace(/^http/, "ws");

function knownToken() {
  const address = new URL(location.href);
  const given = address.searchParams.get("token");
  if (given !== null) {
    document.cookie = `token=${given}; SameSite=Strict; Path=/`;
    address.searchParams.delete("token");
    history.replaceState(null, "", address);
    return given;
  }
  return document.cookie.match(/(?:^|; )token=([^;]*)/)?.[1] ?? "";
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
