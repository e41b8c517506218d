/** When which frame is shown: a clocked queue of decoded chunks. Times are milliseconds of one clock, which the caller reads. Knows no DOM. */

export class Playback {
  #queue = []; // chunks whose frames are not all shown: {header, frames, .., arrived}
  #index = 0; // of the next frame in the first of them
  #due = -Infinity; // when that frame is to be shown
  #frozen = null; // time at which the clock was stopped
  underruns = 0;
  position = 0; // seconds of the clip that were shown or left out

  /** @param {number} fps of the clip */
  constructor(fps) {
    this.step = 1000 / fps;
  }

  get paused() {
    return this.#frozen !== null;
  }

  /** Frames that wait to be shown. */
  get waiting() {
    return this.#queue.reduce((sum, chunk) => sum + chunk.frames.length, 0) - this.#index;
  }

  /** A chunk that comes when nothing waits is shown at once, and the clock starts anew with it. */
  push(chunk, now) {
    const at = this.#frozen ?? now;
    chunk.arrived = now;
    if (!this.#queue.length && this.#due < at) {
      if (at - this.#due > this.step && this.#due > -Infinity) this.underruns += 1;
      this.#due = at;
    }
    this.#queue.push(chunk);
  }

  pause(now) {
    if (!this.paused) this.#frozen = now;
  }

  /** Goes on where it stopped: the frame that was due in 10 ms is due in 10 ms. */
  resume(now) {
    if (this.paused) this.#due += now - this.#frozen;
    this.#frozen = null;
  }

  /** Forgets what waits: the server counts a chunk that was out at a reset, start or stop as acknowledged. */
  flush() {
    this.#queue = [];
    this.#index = 0;
    this.#due = -Infinity;
  }

  /**
   * What is to be shown at `now`: the newest frame that is due, or null where the picture stays. `begun` lists the chunks that begin
   * with it, also where the page was late and leaves frames out: each is to be acknowledged.
   * @returns {?{chunk: object, index: number, begun: object[]}}
   */
  take(now) {
    if (this.paused) return null;
    let taken = null;
    const begun = [];
    while (this.#queue.length && now >= this.#due) {
      const chunk = this.#queue[0];
      if (this.#index === 0) begun.push(chunk);
      taken = { chunk, index: this.#index, begun };
      this.#next(chunk);
    }
    return taken;
  }

  #next(chunk) {
    this.#due += this.step;
    this.position += this.step / 1000;
    this.#index += 1;
    if (this.#index < chunk.frames.length) return;
    this.#queue.shift();
    this.#index = 0;
  }
}
