/** A queue of decoded chunks that decides when each frame is shown. Times are milliseconds of one clock, which the caller reads. */

/** @typedef {import("./types.js").Chunk} Chunk */

export class Playback {
  /** @type {Chunk[]} whose frames are not all shown */
  #queue = [];
  #index = 0; // of the next frame in the first of them
  #due = -Infinity; // when that frame is to be shown
  /** @type {?number} time at which the clock was stopped */
  #frozen = null;
  underruns = 0;
  position = 0; // seconds of the clip that were shown or skipped

  /** @param {number} fps of the clip */
  constructor(fps) {
    this.step = 1000 / fps;
  }

  get paused() {
    return this.#frozen !== null;
  }

  /** Number of frames that wait to be shown. */
  get waiting() {
    return this.#queue.reduce((sum, chunk) => sum + chunk.frames.length, 0) - this.#index;
  }

  /** Adds a chunk. One that comes when nothing waits is shown at once, and the clock restarts with it. @param {Chunk} chunk @param {number} now */
  push(chunk, now) {
    const at = this.#frozen ?? now;
    chunk.arrived = now;
    if (!this.#queue.length && this.#due < at) {
      if (at - this.#due > this.step && this.#due > -Infinity) this.underruns += 1;
      this.#due = at;
    }
    this.#queue.push(chunk);
  }

  /** @param {number} now */
  pause(now) {
    if (!this.paused) this.#frozen = now;
  }

  /** Goes on where it stopped: a frame that was due in 10 ms is due in 10 ms again. @param {number} now */
  resume(now) {
    if (this.#frozen !== null) this.#due += now - this.#frozen;
    this.#frozen = null;
  }

  /** Drops what waits. The server counts a chunk from before a reset, start or stop as acknowledged. */
  flush() {
    this.#queue = [];
    this.#index = 0;
    this.#due = -Infinity;
  }

  /**
   * Returns the newest frame that is due, or null where the picture stays. `begun` lists the chunks whose first frame is due or was
   * skipped because the page was late: each is to be acknowledged.
   * @param {number} now
   * @returns {?import("./types.js").Due}
   */
  take(now) {
    if (this.paused) return null;
    let taken = null;
    /** @type {Chunk[]} */
    const begun = [];
    while (this.#queue.length && now >= this.#due) {
      const chunk = this.#queue[0];
      if (this.#index === 0) begun.push(chunk);
      taken = { chunk, index: this.#index, begun };
      this.#next(chunk);
    }
    return taken;
  }

  /** @param {Chunk} chunk */
  #next(chunk) {
    this.#due += this.step;
    this.position += this.step / 1000;
    this.#index += 1;
    if (this.#index < chunk.frames.length) return;
    this.#queue.shift();
    this.#index = 0;
  }
}
