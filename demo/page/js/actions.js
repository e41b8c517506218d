/** What the page's buttons and keys do. */

import { $, button, input } from "./ui.js";

/** @typedef {ReturnType<typeof makeActions>} Actions */
/** @typedef {import("./types.js").Tool} Tool */

/**
 * @param {object} parts
 * @param {import("./session.js").Session} parts.session
 * @param {import("./stream.js").Stream} parts.stream
 * @param {import("./setup.js").Setup} parts.setup
 * @param {import("./controls.js").Controls} parts.controls
 * @param {import("./pointer.js").PointerInput} parts.pointer
 * @param {import("./camera.js").Camera} parts.camera
 * @param {() => void} parts.changed called when what is drawn over the picture has changed
 */
export function makeActions({ session, stream, setup, controls, pointer, camera, changed }) {
  const start = () => {
    $("prompt-note").textContent = "";
    stream.start(setup.settings);
  };
  const letGo = () => pointer.letGo(performance.now());
  return {
    start,
    toggle() {
      if (button("start").disabled) return; // no picture is loaded yet
      if (session.state === "idle" || session.state === "ready" || session.state === "lost") start();
      else session.stop();
    },
    togglePause() {
      if (session.state === "streaming") session.pause();
      else session.resume();
    },
    reset: () => session.reset(),
    refreshSink: () => session.refreshSink(),
    applyPrompt: () => session.prompt(input("prompt").value.trim()),
    save: () => session.save(input("title").value.trim()),
    leaveQueue: () => session.leave(),
    openKeys: () => /** @type {HTMLDialogElement} */ ($("keys")).showModal(),
    rerunPaths() {
      controls.rerunPaths(performance.now());
      changed();
    },
    letGo() {
      letGo();
      camera.releaseAll();
    },
    clear() {
      letGo();
      controls.clear(performance.now());
      changed();
    },
    /** @param {Tool} tool */
    choose(tool) {
      const choice = /** @type {HTMLInputElement} */ (document.querySelector(`input[name=tool][value=${tool}]`));
      choice.checked = true;
      pointer.tool = tool;
      $("seconds-row").hidden = tool !== "path";
    },
  };
}
