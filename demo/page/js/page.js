/** Joins session, playback, controls and what is seen. */

import { socketAddress } from "./api.js";
import { Camera } from "./camera.js";
import { Controls } from "./controls.js";
import { Hands } from "./hands.js";
import { showFigures } from "./hud.js";
import { Meters } from "./meters.js";
import { Motion } from "./motion.js";
import { Overlay } from "./overlay.js";
import { Playback } from "./playback.js";
import { Screen, decodeChunk } from "./screen.js";
import { Session } from "./session.js";
import { Setup } from "./setup.js";
import { showHelp, showState } from "./status.js";
import { $, announce, note } from "./ui.js";

const HUD_EVERY = 250; // ms
const HIDDEN_EVERY = 100; // ms; a page that is not seen gets no animation frames

export class Page {
  #decoding = Promise.resolve(); // chunks are decoded one after another
  #era = 0; // rises when what was asked for before is not to be shown any more
  #dirty = true; // the overlay
  #tracks = null; // of the frame that is shown
  #dragged = false; // the user knows how
  meters = new Meters();

  constructor(about) {
    this.about = about;
    this.playback = new Playback(about.fps);
    this.controls = new Controls(about.width / about.height, about.max_points);
    this.session = new Session(socketAddress);
    $("work").style.setProperty("--aspect", about.width / about.height);
    this.screen = new Screen($("picture"), about.width, about.height);
    this.overlay = new Overlay($("overlay"));
    this.hands = new Hands($("overlay"), this.controls, () => (this.#dirty = true));
    this.hands.first = (tool) => this.#took(tool);
    this.setup = new Setup((image) => this.#still(image));
    this.camera = new Camera($("camera"), this.controls);
    this.motion = new Motion(this.controls, this.session, about.motions);
    this.session.addEventListener("state", () => this.#stateChanged());
    this.session.addEventListener("message", ({ detail }) => this.#hear(detail));
    this.session.addEventListener("trouble", ({ detail }) => note(detail, { bad: true }));
    new ResizeObserver(() => {
      this.overlay.fit();
      this.#dirty = true;
    }).observe($("overlay"));
    this.#runClocks();
    this.#stateChanged();
  }

  #runClocks() {
    const tick = () => {
      this.#tick();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    setInterval(() => document.hidden && this.#tick(), HIDDEN_EVERY);
    setInterval(() => this.session.running && showFigures(this.meters, performance.now()), HUD_EVERY);
  }

  // What buttons and keys do.

  toggle() {
    if ($("start").disabled) return; // no picture yet
    const { state } = this.session;
    if (state === "idle" || state === "ready" || state === "lost") this.#start();
    else this.session.stop();
  }

  togglePause() {
    if (this.session.state === "streaming") this.session.pause();
    else this.session.resume();
  }

  reset() {
    this.session.reset();
  }

  refreshSink() {
    this.session.refreshSink();
  }

  rerunPaths() {
    this.controls.rerunPaths(performance.now());
    this.#dirty = true;
  }

  letGo() {
    this.hands.letGo(performance.now());
    this.camera.letGoOfAll();
  }

  clear() {
    this.hands.letGo(performance.now());
    this.controls.clear(performance.now());
    this.#dirty = true;
  }

  applyPrompt() {
    this.session.prompt($("prompt").value.trim());
  }

  // What the session says.

  #start() {
    $("prompt-note").textContent = "";
    this.meters.begin(performance.now());
    this.session.start(this.setup.settings);
  }

  /** Nothing of what was asked for before is shown any more. */
  #forget() {
    this.#era += 1;
    this.#tracks = null;
    this.playback.flush();
  }

  #stateChanged() {
    const { state } = this.session;
    const now = performance.now();
    if (state === "paused") this.playback.pause(now);
    else this.playback.resume(now);
    if (state === "starting") {
      this.meters.clear();
      this.controls.restate();
    }
    if (state === "paused") this.meters.controlToPixel.forget();
    if (state === "starting" || state === "stopping" || state === "lost" || state === "idle") this.#forget();
    this.#dirty = true;
    this.#showState();
    showFigures(this.meters, now);
  }

  #hear({ name, header, payload }) {
    if (name === "chunk") this.#chunk(header, payload);
    else if (name === "changed") this.#changed(header);
    else if (name === "saved") note("Saved.", { link: { href: `gallery#${header.id}`, textContent: "See it in the gallery" } });
    else if (name === "error" && !header.fatal) note(header.text, { bad: header.code !== "notice" }); // a fatal one is told by the curtain
  }

  #changed({ what, chunk }) {
    if (what === "prompt") $("prompt-note").textContent = `In force from chunk ${chunk} on.`;
    if (what === "sink") announce(`The sink is new from chunk ${chunk} on.`);
    if (what !== "reset") return;
    this.#forget();
    this.controls.restate();
    if (this.session.state === "paused") this.screen.showStill(this.setup.image);
    announce("Back at the first frame.");
  }

  #chunk(header, payload) {
    if (!this.session.running) return; // of a stream that was left meanwhile
    const era = this.#era;
    const { encoding } = this.session.welcome;
    this.meters.chunkArrived(header);
    this.#decoding = this.#decoding.then(async () => {
      const chunk = await decodeChunk(header, payload, encoding);
      if (era === this.#era) this.playback.push(chunk, performance.now());
    }).catch((error) => {
      note(`Chunk ${header.chunk} cannot be shown: ${error.message}`, { bad: true });
      this.session.ack(header.seq, 0);
    });
  }

  #ack(chunk) {
    this.session.ack(chunk.header.seq, Math.max(0, performance.now() - chunk.arrived));
  }

  // Every animation frame.

  #tick() {
    const taken = this.playback.take(performance.now());
    if (taken) this.#show(taken);
    if (this.session.takesControls) this.#sendControls();
    if (!this.#dirty) return;
    this.#dirty = false;
    const { hover, cursor } = this.hands;
    this.overlay.draw(this.controls, { tracks: $("show-tracks").checked ? this.#tracks : null, hover, cursor, at: this.playback.position });
    $("rerun").hidden = !this.controls.paths.length;
  }

  #sendControls() {
    const snapshot = this.controls.snapshot();
    if (!snapshot) return;
    if (this.session.state === "streaming" && snapshot.inputAt !== null) this.meters.controlToPixel.sent(snapshot.revision, snapshot.inputAt);
    this.session.controls(snapshot);
    this.#dirty = true;
  }

  #show({ chunk, index, begun }) {
    this.screen.show(chunk.frames[index]);
    this.#tracks = chunk.tracks[index];
    this.#dirty ||= $("show-tracks").checked || this.controls.paths.length > 0;
    const now = performance.now();
    this.meters.frameShown(now);
    for (const each of begun) {
      this.#ack(each);
      this.meters.chunkShown(each.header, now);
      this.controls.shown(each.header.revision, this.playback.position);
    }
  }

  // What is seen besides.

  /** Another picture was chosen: a stream that runs begins anew with it. */
  #still(image) {
    $("start").disabled = false;
    if (this.session.running) this.#start();
    this.screen.showStill(image);
    this.#tracks = null;
    this.#dirty = true;
  }

  #took(tool) {
    if (tool === "drag" && this.session.running) this.#dragged = true;
    showHelp(this.session, this.#dragged);
  }

  #showState() {
    showState(this.session, this.meters.chunks > 0);
    showHelp(this.session, this.#dragged);
  }

  redraw() {
    this.#dirty = true;
  }

  /** For tests and measurements: figures only. */
  get hook() {
    const page = this;
    return Object.freeze({
      get state() { return page.session.state; },
      get about() { return structuredClone(page.about); },
      get counters() {
        const { chunks, frames, cacheBytes } = page.meters;
        return { chunks, frames, cacheBytes, firstFrameMs: page.meters.firstFrameMs, underruns: page.playback.underruns, waiting: page.playback.waiting, fps: page.meters.rate.at(performance.now()) };
      },
      get latencies() { return page.meters.latencyMs.all; },
      get chunkMs() { return page.meters.chunkMs.all; },
      get points() { return structuredClone(page.controls.view); },
    });
  }
}
