/** Takes a stream from the session to the screen: decodes chunks, shows frames when they are due, acknowledges, and sends the controls. */

import { decodeChunk } from "./screen.js";
import { note, reason } from "./ui.js";

/** @typedef {import("./types.js").ChunkHeader} ChunkHeader */

export class Stream {
  #decoding = Promise.resolve(); // chunks are decoded one after another
  #era = 0; // rises when chunks that were requested before must not be shown any more
  /** @type {?Float32Array} tracks of the frame that is shown */
  tracks = null;

  /**
   * @param {object} parts
   * @param {import("./session.js").Session} parts.session
   * @param {import("./playback.js").Playback} parts.playback
   * @param {import("./screen.js").Screen} parts.screen
   * @param {import("./controls.js").Controls} parts.controls
   * @param {import("./meters.js").Meters} parts.meters
   * @param {() => void} parts.changed called when what is drawn over the picture has changed
   */
  constructor({ session, playback, screen, controls, meters, changed }) {
    this.session = session;
    this.playback = playback;
    this.screen = screen;
    this.controls = controls;
    this.meters = meters;
    this.changed = changed;
    session.addEventListener("state", () => this.#followState());
    session.onMessage(({ name, header, payload }) => name === "chunk" && this.#receive(header, payload));
  }

  /** Starts a stream with these settings. @param {import("./types.js").StartSettings} settings */
  start(settings) {
    this.meters.begin(performance.now());
    this.session.start(settings);
  }

  /** Discards what was requested before: none of it is shown any more. */
  discard() {
    this.#era += 1;
    this.tracks = null;
    this.playback.flush();
  }

  /** Shows the picture that a stream starts with. @param {HTMLImageElement} image */
  showStill(image) {
    this.screen.showStill(image);
    this.tracks = null;
    this.changed();
  }

  /** Shows the frame that is due and sends the controls if they changed. Called for every animation frame. @param {number} now */
  tick(now) {
    const due = this.playback.take(now);
    if (due) this.#show(due);
    if (this.session.takesControls) this.#sendControls();
  }

  #followState() {
    const { state } = this.session;
    const now = performance.now();
    if (state === "paused") this.playback.pause(now);
    else this.playback.resume(now);
    if (state === "starting") {
      this.meters.clear();
      this.controls.resend();
    }
    if (state === "paused") this.meters.controlToPixel.forget();
    if (state === "starting" || state === "stopping" || state === "lost" || state === "idle") this.discard();
    this.changed();
  }

  /**
   * @param {ChunkHeader} header
   * @param {Uint8Array<ArrayBuffer>} payload
   */
  #receive(header, payload) {
    if (!this.session.running) return; // it belongs to a stream that was stopped meanwhile
    const era = this.#era;
    const { encoding } = this.session.welcome;
    this.meters.chunkArrived(header);
    this.#decoding = this.#decoding.then(async () => {
      const chunk = await decodeChunk(header, payload, encoding);
      if (era === this.#era) this.playback.push(chunk, performance.now());
    }).catch((error) => {
      note(`Chunk ${header.chunk} cannot be shown: ${reason(error)}`, { bad: true });
      this.session.ack(header.seq, 0);
    });
  }

  #sendControls() {
    const snapshot = this.controls.snapshot();
    if (!snapshot) return;
    if (this.session.state === "streaming" && snapshot.inputAt !== null) this.meters.controlToPixel.sent(snapshot.revision, snapshot.inputAt);
    this.session.controls(snapshot);
    this.changed();
  }

  /** @param {import("./types.js").Due} due */
  #show({ chunk, index, begun }) {
    this.screen.show(chunk.frames[index]);
    this.tracks = chunk.tracks[index];
    const now = performance.now();
    this.meters.frameShown(now);
    for (const each of begun) {
      this.session.ack(each.header.seq, Math.max(0, now - each.arrived));
      this.meters.chunkShown(each.header, now);
      this.controls.shown(each.header.revision, this.playback.position);
    }
    this.changed();
  }
}
