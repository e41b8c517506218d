/** Shows the state of the session: the label at the top, the buttons, the curtain over the picture, the line of help. */

import { $, button } from "./ui.js";

/** @typedef {import("./session.js").Session} Session */

const STATE = Object.freeze({
  idle: "Ready", connecting: "Connecting", queued: "Waiting", ready: "Ready", starting: "Starting", streaming: "Streaming", paused: "Paused",
  stopping: "Stopping", lost: "Disconnected",
});

export class Status {
  #dragged = false; // the user has dragged something, and needs no help any more

  /** @param {Session} session @param {import("./meters.js").Meters} meters */
  constructor(session, meters) {
    this.session = session;
    session.addEventListener("state", () => {
      showState(session, meters.chunks > 0);
      showHelp(session, this.#dragged);
    });
    showState(session, false);
    showHelp(session, false);
  }

  /** Notes that a tool is used. @param {import("./types.js").Tool} tool */
  used(tool) {
    if (tool === "drag" && this.session.running) this.#dragged = true;
    showHelp(this.session, this.#dragged);
  }
}

/** @param {Session} session @param {boolean} played whether there is something to save */
function showState(session, played) {
  const { state, running, position } = session;
  const quiet = state === "idle" || state === "ready" || state === "lost";
  $("state").dataset.state = state;
  $("state").textContent = state === "queued" ? `Waiting, number ${position}` : STATE[state];
  label("start").textContent = quiet ? "Start" : "Stop";
  label("pause").textContent = state === "paused" ? "Resume" : "Pause";
  for (const id of ["pause", "reset", "sink"]) button(id).disabled = !running;
  button("save").disabled = !(running || (played && state === "ready"));
  $("apply").hidden = !running;
  showCurtain(session);
}

/** @param {string} id of a button with a text and a key */
function label(id) {
  return /** @type {Element} */ ($(id).firstElementChild);
}

/** @param {Session} session */
function showCurtain({ state, position, why }) {
  const queued = state === "queued";
  $("curtain").hidden = !(queued || state === "lost");
  $("curtain-text").textContent = queued ? waitingText(position) : why;
  $("curtain-act").textContent = queued ? "Leave the queue" : "Reconnect";
}

/** @param {number} position */
function waitingText(position) {
  return position === 1 ? "Someone else is streaming. You are next." : `Someone else is streaming. You are number ${position} in the queue.`;
}

/** @param {Session} session @param {boolean} dragged */
function showHelp({ state, running }, dragged) {
  $("help").hidden = state === "starting" || state === "queued" || state === "lost" || (running && dragged);
  $("help").textContent = running ? "Drag anything in the picture: it moves while you drag." : "Press Start, then drag anything in the picture.";
}
