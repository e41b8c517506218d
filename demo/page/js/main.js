/** Where the streaming page begins: what buttons, fields and keys do. */

import { get, hideToken } from "./api.js";
import { listen } from "./keys.js";
import { Page } from "./page.js";
import { $, note } from "./ui.js";

const TOOLS = ["drag", "pin", "path", "erase"];

/** A button that a mouse or finger pressed gives the focus up: the keys are the page's again. */
function onPress(id, act) {
  $(id).addEventListener("click", (event) => {
    if (event.detail > 0) $(id).blur();
    act();
  });
}

function bindButtons(page) {
  onPress("start", () => page.toggle());
  $("start").addEventListener("click", ({ detail }) => detail === 0 && $("overlay").focus()); // by key: there the next keys belong
  onPress("pause", () => page.togglePause());
  onPress("reset", () => page.reset());
  onPress("sink", () => page.refreshSink());
  onPress("rerun", () => page.rerunPaths());
  onPress("clear", () => page.clear());
  onPress("apply", () => page.applyPrompt());
  onPress("save", () => page.session.save($("title").value.trim()));
  onPress("curtain-act", () => (page.session.state === "queued" ? page.session.leave() : page.toggle()));
  onPress("keys-open", () => $("keys").showModal());
  $("title").addEventListener("keydown", (event) => event.key === "Enter" && $("save").click());
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    page.applyPrompt();
  });
}

function choose(page, tool) {
  document.querySelector(`input[name=tool][value=${tool}]`).checked = true;
  page.hands.tool = tool;
  $("seconds-row").hidden = tool !== "path";
}

function bindFields(page, about) {
  const { controls } = page;
  const set = (id, event, act) => {
    $(id).addEventListener(event, () => {
      act($(id));
      page.redraw();
    });
    act($(id));
  };
  $("brush").value = controls.brush;
  $("seconds").value = controls.pathSeconds;
  $("grid").max = Math.max(Number($("grid").max), about.grid[1]);
  while (Number($("grid").max) > 3 && controls.pointsOf(Number($("grid").max)) > about.max_points) $("grid").max -= 1;
  $("grid").value = about.grid[1];
  set("brush", "input", (field) => (controls.brush = Number(field.value)));
  set("grid", "input", (field) => controls.setGrid(Number(field.value)));
  set("seconds", "change", (field) => (controls.pathSeconds = Math.min(Math.max(Number(field.value) || 2, 0.25), 20)));
  set("pin-rest", "change", (field) => controls.setPinRest(field.checked, performance.now()));
  set("show-tracks", "change", () => {});
  set("sharp", "change", (field) => $("picture").classList.toggle("sharp", field.checked));
  for (const input of document.querySelectorAll("input[name=tool]")) input.addEventListener("change", () => choose(page, input.value));
  choose(page, "drag");
}

function bindKeys(page) {
  const tools = Object.fromEntries(TOOLS.map((tool, i) => [String(i + 1), () => choose(page, tool)]));
  const acts = {
    Enter: () => page.toggle(), " ": () => page.togglePause(), r: () => page.reset(), s: () => page.refreshSink(), p: () => page.rerunPaths(),
    Escape: () => page.letGo(), "?": () => $("keys").showModal(), ...tools,
  };
  listen(acts, page.camera);
}

async function begin() {
  hideToken();
  const about = await get("about");
  const page = new Page(about);
  $("student").textContent = `${about.preset} · ${about.student} · ${about.device}`;
  bindButtons(page);
  bindFields(page, about);
  bindKeys(page);
  Object.defineProperty(window, "motionstream", { value: page.hook });
  await page.setup.load();
}

begin().catch((error) => note(`The page could not begin: ${error.message} Is the server still running? Reload when it is.`, { bad: true }));
