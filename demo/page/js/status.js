/** What the page says about the session: the chip, the buttons, the curtain over the picture, the sentence of help. */

import { $ } from "./ui.js";

const STATE = Object.freeze({
  idle: "Ready", connecting: "Connecting", queued: "Waiting", ready: "Ready", starting: "Starting", streaming: "Streaming", paused: "Paused",
  stopping: "Stopping", lost: "Disconnected",
});

/** @param {import("./session.js").Session} session @param {boolean} played whether there is something to save */
export function showState(session, played) {
  const { state, running, position } = session;
  const quiet = state === "idle" || state === "ready" || state === "lost";
  $("state").dataset.state = state;
  $("state").textContent = state === "queued" ? `Waiting, number ${position}` : STATE[state];
  $("start").firstElementChild.textContent = quiet ? "Start" : "Stop";
  $("pause").firstElementChild.textContent = state === "paused" ? "Resume" : "Pause";
  for (const id of ["pause", "reset", "sink"]) $(id).disabled = !running;
  $("save").disabled = !(running || (played && state === "ready"));
  $("apply").hidden = !running;
  showCurtain(session);
}

function showCurtain({ state, position, why }) {
  const queued = state === "queued";
  $("curtain").hidden = !(queued || state === "lost");
  $("curtain-text").textContent = queued ? waitingText(position) : why;
  $("curtain-act").textContent = queued ? "Leave the queue" : "Reconnect";
}

function waitingText(position) {
  return position === 1 ? "Someone else is streaming. You are next." : `Someone else is streaming. You are number ${position} in the queue.`;
}

/** @param {import("./session.js").Session} session @param {boolean} dragged whether the user has seen how it works */
export function showHelp({ state, running }, dragged) {
  $("help").hidden = state === "starting" || state === "queued" || state === "lost" || (running && dragged);
  $("help").textContent = running ? "Drag anything in the picture: it moves as you go." : "Press Start, then drag anything in the picture.";
}
