/** The streaming page: builds its parts and connects them. */

import { makeActions } from "./actions.js";
import { get, hideToken, socketAddress } from "./api.js";
import { bindButtons, bindFields, bindKeys } from "./bindings.js";
import { Camera } from "./camera.js";
import { Controls } from "./controls.js";
import { showFigures } from "./hud.js";
import { publishMeasurements } from "./measurements.js";
import { Meters } from "./meters.js";
import { Motion } from "./motion.js";
import { showNotices } from "./notices.js";
import { Overlay } from "./overlay.js";
import { Playback } from "./playback.js";
import { PointerInput } from "./pointer.js";
import { Screen } from "./screen.js";
import { Session } from "./session.js";
import { Setup } from "./setup.js";
import { Status } from "./status.js";
import { Stream } from "./stream.js";
import { $, button, canvas, input, note, reason } from "./ui.js";

const FIGURES_MS = 250;
const HIDDEN_MS = 100; // between two ticks of a hidden page, which gets no animation frames

/** @param {import("./types.js").About} about */
function build(about) {
  $("student").textContent = `${about.preset} · ${about.student} · ${about.device}`;
  $("work").style.setProperty("--aspect", String(about.width / about.height));
  const meters = new Meters();
  const session = new Session(socketAddress);
  const playback = new Playback(about.fps);
  const controls = new Controls(about.width / about.height, about.max_points);
  const screen = new Screen(canvas("picture"), about.width, about.height);
  const status = new Status(session, meters);
  const pointer = new PointerInput(canvas("overlay"), controls, () => overlay.invalidate(), (tool) => status.used(tool));
  const overlay = new Overlay(canvas("overlay"), controls, () => ({
    tracks: input("show-tracks").checked ? stream.tracks : null, hover: pointer.hover, cursor: pointer.cursor, at: playback.position,
  }));
  const changed = () => overlay.invalidate();
  const stream = new Stream({ session, playback, screen, controls, meters, changed });
  const camera = new Camera($("camera"), controls);
  const setup = new Setup((image) => {
    button("start").disabled = false;
    if (session.running) actions.start(); // with the new picture
    stream.showStill(image);
  });
  const actions = makeActions({ session, stream, setup, controls, pointer, camera, changed });
  new Motion(controls, session, about.motions);
  showNotices(session, () => {
    stream.discard();
    controls.resend();
    if (session.state === "paused" && setup.image) stream.showStill(setup.image);
  });
  bindButtons(actions, session);
  bindFields(actions, controls, about, changed);
  bindKeys(actions, camera);
  publishMeasurements({ about, session, playback, controls, meters });
  session.addEventListener("state", () => showFigures(meters, performance.now()));
  showFigures(meters, performance.now());
  runClocks(() => {
    stream.tick(performance.now());
    if (overlay.drawIfInvalid()) $("rerun").hidden = !controls.paths.length;
  });
  setInterval(() => session.running && showFigures(meters, performance.now()), FIGURES_MS);
  return setup;
}

/** @param {() => void} tick */
function runClocks(tick) {
  const animate = () => {
    tick();
    requestAnimationFrame(animate);
  };
  requestAnimationFrame(animate);
  setInterval(() => document.hidden && tick(), HIDDEN_MS);
}

async function begin() {
  hideToken();
  await build(await get("about")).load();
}

begin().catch((error) => note(`The page could not begin: ${reason(error)} Check that the server is running, then reload the page.`, { bad: true }));
