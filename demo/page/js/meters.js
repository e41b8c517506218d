/** Figures for the display above the picture. Times are milliseconds. Knows no DOM. */

/** The share-th quantile, linear between samples as numpy's; NaN of nothing. */
export function quantile(samples, share) {
  if (!samples.length) return NaN;
  const sorted = [...samples].sort((a, b) => a - b);
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}

/** The last so many samples. */
export class Recent {
  #samples = [];

  constructor(limit) {
    this.limit = limit;
  }

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

/** Frames a second over the last three seconds. */
export class Rate {
  #times = [];

  tick(now) {
    this.#times.push(now);
    while (now - this.#times[0] > 3000) this.#times.shift();
  }

  clear() {
    this.#times = [];
  }

  /** 0 where nothing was shown for a second. */
  at(now) {
    const times = this.#times;
    const last = times[times.length - 1];
    if (times.length < 2 || now - last > 1000) return 0;
    return ((times.length - 1) * 1000) / (last - times[0]);
  }
}

/** From the input event to the first frame whose chunk knew of it. */
export class ControlToPixel {
  #open = new Map(); // revision -> time of its first input event

  sent(revision, inputAt) {
    this.#open.set(revision, inputAt);
  }

  forget() {
    this.#open.clear();
  }

  /** Delays of all revisions that a chunk includes whose first frame was just shown. */
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
  latencyPlot = new Recent(120); // one point a chunk: the largest of its delays
  controlToPixel = new ControlToPixel();
  chunks = 0;
  frames = 0;
  cacheBytes = 0;
  firstFrameMs = NaN; // from the wish to start to the first frame
  #begun = NaN;

  /** A start was asked for: the first frame is waited for. */
  begin(now) {
    this.#begun = now;
    this.firstFrameMs = NaN;
  }

  chunkArrived(header) {
    this.chunks += 1;
    this.chunkMs.add(header.dit_ms + header.decode_ms);
    this.cacheBytes = header.cache_bytes;
  }

  chunkShown(header, now) {
    const delays = this.controlToPixel.shown(header.revision, now);
    delays.forEach((delay) => this.latencyMs.add(delay));
    if (delays.length) this.latencyPlot.add(Math.max(...delays));
  }

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
