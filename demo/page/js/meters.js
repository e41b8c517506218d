/** Measures the stream: frame rate, chunk times, latencies. Times are milliseconds. */

/**
 * Returns a quantile, linear between samples like numpy's; NaN without samples.
 * @param {number[]} samples
 * @param {number} share 0 to 1
 */
export function quantile(samples, share) {
  if (!samples.length) return NaN;
  const sorted = [...samples].sort((a, b) => a - b);
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}

/** Keeps the newest samples. */
export class Recent {
  /** @type {number[]} */
  #samples = [];

  /** @param {number} limit how many are kept */
  constructor(limit) {
    this.limit = limit;
  }

  /** @param {number} sample */
  add(sample) {
    this.#samples.push(sample);
    if (this.#samples.length > this.limit) this.#samples.shift();
  }

  clear() {
    this.#samples = [];
  }

  get all() {
    return [...this.#samples];
  }

  get p50() {
    return quantile(this.#samples, 0.5);
  }

  get p95() {
    return quantile(this.#samples, 0.95);
  }
}

/** Measures frames a second over the last three seconds. */
export class Rate {
  /** @type {number[]} */
  #times = [];

  /** @param {number} now */
  tick(now) {
    this.#times.push(now);
    while (now - this.#times[0] > 3000) this.#times.shift();
  }

  clear() {
    this.#times = [];
  }

  /** Returns frames a second; 0 where nothing was shown for a second. @param {number} now */
  at(now) {
    const times = this.#times;
    const last = times[times.length - 1];
    if (times.length < 2 || now - last > 1000) return 0;
    return ((times.length - 1) * 1000) / (last - times[0]);
  }
}

/** Measures the time from an input event to the first frame whose chunk followed it. */
export class ControlToPixel {
  /** @type {Map<number, number>} revision -> time of its first input event */
  #open = new Map();

  /** @param {number} revision @param {number} inputAt */
  sent(revision, inputAt) {
    this.#open.set(revision, inputAt);
  }

  forget() {
    this.#open.clear();
  }

  /**
   * Returns the delays of the revisions that a chunk follows, whose first frame was just shown.
   * @param {number} revision
   * @param {number} now
   */
  shown(revision, now) {
    const delays = [];
    for (const [sent, inputAt] of this.#open) {
      if (sent > revision) continue;
      delays.push(now - inputAt);
      this.#open.delete(sent);
    }
    return delays;
  }
}

export class Meters {
  rate = new Rate();
  chunkMs = new Recent(200);
  latencyMs = new Recent(400);
  latencyPlot = new Recent(120); // one value a chunk: the largest of its delays
  controlToPixel = new ControlToPixel();
  chunks = 0;
  frames = 0;
  cacheBytes = 0;
  firstFrameMs = NaN; // from the request to start until the first frame
  #begun = NaN;

  /** Notes that a start was requested. @param {number} now */
  begin(now) {
    this.#begun = now;
    this.firstFrameMs = NaN;
  }

  /** @param {import("./types.js").ChunkHeader} header */
  chunkArrived(header) {
    this.chunks += 1;
    this.chunkMs.add(header.dit_ms + header.decode_ms);
    this.cacheBytes = header.cache_bytes;
  }

  /** @param {import("./types.js").ChunkHeader} header @param {number} now */
  chunkShown(header, now) {
    const delays = this.controlToPixel.shown(header.revision, now);
    delays.forEach((delay) => this.latencyMs.add(delay));
    if (delays.length) this.latencyPlot.add(Math.max(...delays));
  }

  /** @param {number} now */
  frameShown(now) {
    if (!this.frames) this.firstFrameMs = now - this.#begun;
    this.frames += 1;
    this.rate.tick(now);
  }

  clear() {
    this.rate.clear();
    [this.chunkMs, this.latencyMs, this.latencyPlot].forEach((recent) => recent.clear());
    this.controlToPixel.forget();
    this.chunks = this.frames = this.cacheBytes = 0;
  }
}
