/** Tells the user what the server reports: changes, saved recordings and errors. */

import { NOTICE } from "./protocol_numbers.js";
import { $, announce, note } from "./ui.js";

/**
 * @param {import("./session.js").Session} session
 * @param {() => void} onReset called when the server has gone back to the first frame
 */
export function showNotices(session, onReset) {
  session.onMessage(({ name, header }) => {
    if (name === "changed") showChange(header);
    else if (name === "saved") note("Saved.", { link: { href: `gallery#${header.id}`, textContent: "See it in the gallery" } });
    else if (name === "error" && !header.fatal) note(header.text, { bad: header.code !== NOTICE }); // the curtain shows a fatal one
    if (name === "changed" && header.what === "reset") onReset();
  });
  session.addEventListener("trouble", (event) => note(/** @type {CustomEvent} */ (event).detail, { bad: true }));
}

/** @param {{what: "prompt" | "sink" | "reset", chunk: number}} change */
function showChange({ what, chunk }) {
  if (what === "prompt") $("prompt-note").textContent = `In force from chunk ${chunk} on.`;
  if (what === "sink") announce(`The sink was refreshed, from chunk ${chunk} on.`);
  if (what === "reset") announce("Back at the first frame.");
}
