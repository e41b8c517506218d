/** Connects buttons, fields and keys with the actions. */

import { listen } from "./keys.js";
import { LIMIT } from "./protocol_numbers.js";
import { $, button, input } from "./ui.js";

/** @typedef {import("./actions.js").Actions} Actions */

/** @type {import("./types.js").Tool[]} */
const TOOLS = ["drag", "pin", "path", "erase"];
const [MIN_PATH_SECONDS, MAX_PATH_SECONDS] = [0.25, 20];

/**
 * Binds a button, which gives up the focus after a mouse or finger pressed it, so that keys act on the page again.
 * @param {string} id
 * @param {() => void} act
 */
function onPress(id, act) {
  $(id).addEventListener("click", (event) => {
    if (event.detail > 0) $(id).blur();
    act();
  });
}

/**
 * @param {Actions} actions
 * @param {import("./session.js").Session} session
 */
export function bindButtons(actions, session) {
  onPress("start", actions.toggle);
  $("start").addEventListener("click", ({ detail }) => detail === 0 && $("overlay").focus()); // pressed by key: the next keys are for the picture
  onPress("pause", actions.togglePause);
  onPress("reset", actions.reset);
  onPress("sink", actions.refreshSink);
  onPress("rerun", actions.rerunPaths);
  onPress("clear", actions.clear);
  onPress("apply", actions.applyPrompt);
  onPress("save", actions.save);
  onPress("curtain-act", () => (session.state === "queued" ? actions.leaveQueue() : actions.toggle()));
  onPress("keys-open", actions.openKeys);
  $("title").addEventListener("keydown", (event) => event.key === "Enter" && button("save").click());
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    actions.applyPrompt();
  });
}

/**
 * @param {Actions} actions
 * @param {import("./controls.js").Controls} controls
 * @param {import("./types.js").About} about
 * @param {() => void} changed
 */
export function bindFields(actions, controls, about, changed) {
  /** @type {(id: string, event: string, act: (field: HTMLInputElement) => void) => void} */
  const bind = (id, event, act) => {
    input(id).addEventListener(event, () => {
      act(input(id));
      changed();
    });
    act(input(id));
  };
  input("prompt").maxLength = LIMIT.prompt;
  input("seed").max = String(LIMIT.seed);
  input("brush").value = String(controls.brush);
  input("seconds").value = String(controls.pathSeconds);
  input("grid").max = String(finestGrid(controls, about));
  input("grid").value = String(about.grid[1]);
  bind("brush", "input", (field) => (controls.brush = Number(field.value)));
  bind("grid", "input", (field) => controls.setGrid(Number(field.value)));
  bind("seconds", "change", (field) => (controls.pathSeconds = Math.min(Math.max(Number(field.value) || 2, MIN_PATH_SECONDS), MAX_PATH_SECONDS)));
  bind("pin-rest", "change", (field) => controls.setPinRest(field.checked, performance.now()));
  bind("show-tracks", "change", () => {});
  bind("sharp", "change", (field) => $("picture").classList.toggle("sharp", field.checked));
  for (const tool of TOOLS) document.querySelector(`input[name=tool][value=${tool}]`)?.addEventListener("change", () => actions.choose(tool));
  actions.choose("drag");
}

/**
 * Returns the columns of the finest grid whose points the model takes.
 * @param {import("./controls.js").Controls} controls
 * @param {import("./types.js").About} about
 */
function finestGrid(controls, about) {
  let columns = Math.max(Number(input("grid").max), about.grid[1]);
  while (columns > 3 && controls.pointsOf(columns) > about.max_points) columns -= 1;
  return columns;
}

/**
 * @param {Actions} actions
 * @param {import("./camera.js").Camera} camera
 */
export function bindKeys(actions, camera) {
  const tools = Object.fromEntries(TOOLS.map((tool, i) => [String(i + 1), () => actions.choose(tool)]));
  const keys = {
    Enter: actions.toggle, " ": actions.togglePause, r: actions.reset, s: actions.refreshSink, p: actions.rerunPaths,
    Escape: actions.letGo, "?": actions.openKeys, ...tools,
  };
  listen(keys, camera);
}
