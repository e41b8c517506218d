/** Figures and states that tests and measurements read as window.motionstream. */

/**
 * @param {object} parts
 * @param {import("./types.js").About} parts.about
 * @param {import("./session.js").Session} parts.session
 * @param {import("./playback.js").Playback} parts.playback
 * @param {import("./controls.js").Controls} parts.controls
 * @param {import("./meters.js").Meters} parts.meters
 */
export function publishMeasurements({ about, session, playback, controls, meters }) {
  const value = Object.freeze({
    get state() { return session.state; },
    get about() { return structuredClone(about); },
    get counters() {
      const { chunks, frames, cacheBytes, firstFrameMs } = meters;
      return { chunks, frames, cacheBytes, firstFrameMs, underruns: playback.underruns, position: playback.position, waiting: playback.waiting, fps: meters.rate.at(performance.now()) };
    },
    get latencies() { return meters.latencyMs.all; },
    get chunkMs() { return meters.chunkMs.all; },
    get points() { return structuredClone(controls.view); },
  });
  Object.defineProperty(window, "motionstream", { value });
}
