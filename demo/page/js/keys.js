/** The page's keys. They do nothing while text is typed, nor where the focused element uses the key itself. */

import { takesText } from "./ui.js";

/**
 * Axis of the camera and direction: the scene moves with the arrow.
 * @type {Readonly<Record<string, [import("./types.js").Axis, number]>>}
 */
const CAMERA_KEYS = Object.freeze({
  ArrowLeft: ["pan_x", -1], ArrowRight: ["pan_x", 1], ArrowUp: ["pan_y", -1], ArrowDown: ["pan_y", 1],
  "+": ["zoom", 1], "=": ["zoom", 1], "-": ["zoom", -1], _: ["zoom", -1],
  "[": ["rotate", -1], "]": ["rotate", 1], ",": ["orbit", -1], ".": ["orbit", 1],
});

/**
 * @param {Record<string, () => void>} acts what the keys do, by key: Enter, " ", r, s, p, 1 to 4, Escape
 * @param {import("./camera.js").Camera} camera
 */
export function listen(acts, camera) {
  window.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || usesKey(event)) return;
    const axis = CAMERA_KEYS[event.key];
    const act = acts[event.key] ?? acts[event.key.toLowerCase()];
    if (axis) camera.hold(...axis, event.timeStamp);
    else if (act && !event.repeat) act();
    else if (!act) return;
    event.preventDefault();
  });
  window.addEventListener("keyup", (event) => {
    const axis = CAMERA_KEYS[event.key];
    if (axis) camera.release(axis[0]);
  });
  window.addEventListener("blur", () => camera.releaseAll());
}

/** Tells whether the focused element uses this key itself. @param {KeyboardEvent} event */
function usesKey({ target, key }) {
  if (!(target instanceof Element)) return false;
  if (takesText(target) || document.querySelector("dialog[open]")) return true;
  const press = key === "Enter" || key === " ";
  if (target.matches("[role=radio]")) return key === " " || key.startsWith("Arrow");
  if (target.matches("button, a, summary, input[type=file]")) return press;
  if (target.matches("input")) return key === " " || key.startsWith("Arrow");
  return false;
}
