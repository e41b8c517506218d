/** Shows the measurements below the picture, and the plot of latency over time. */

import { $, canvas, context2d } from "./ui.js";

const whole = (/** @type {number} */ value) => (Number.isFinite(value) ? value.toFixed(0) : "–");
const pair = (/** @type {import("./meters.js").Recent} */ { p50, p95 }) => (Number.isFinite(p50) ? `${whole(p50)} / ${whole(p95)} ms` : "–");

/** @param {import("./meters.js").Meters} meters @param {number} now */
export function showFigures(meters, now) {
  $("fps").textContent = meters.frames ? meters.rate.at(now).toFixed(1) : "–";
  $("chunk-ms").textContent = pair(meters.chunkMs);
  $("latency-ms").textContent = pair(meters.latencyMs);
  $("chunks").textContent = String(meters.chunks);
  $("cache").textContent = meters.cacheBytes ? bytesText(meters.cacheBytes) : "–";
  plot(canvas("plot"), meters.latencyPlot);
}

/** @param {number} bytes */
export function bytesText(bytes) {
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

/**
 * Draws one bar for each chunk that followed an input, the newest at the right. The largest sets the scale.
 * @param {HTMLCanvasElement} chart
 * @param {import("./meters.js").Recent} recent
 */
function plot(chart, recent) {
  const density = window.devicePixelRatio || 1;
  const [width, height] = [chart.clientWidth, chart.clientHeight];
  if (chart.width !== Math.round(width * density)) Object.assign(chart, { width: Math.round(width * density), height: Math.round(height * density) });
  const c = context2d(chart);
  const style = getComputedStyle(chart);
  c.setTransform(density, 0, 0, density, 0, 0);
  c.clearRect(0, 0, width, height);
  const samples = recent.all;
  const top = Math.max(100, ...samples);
  const slot = width / recent.limit;
  c.fillStyle = style.getPropertyValue("--line");
  c.fillRect(0, height - 1, width, 1);
  c.fillStyle = style.getPropertyValue("--accent");
  samples.forEach((sample, i) => {
    const tall = (sample / top) * (height - 16);
    c.fillRect(width - (samples.length - i) * slot, height - 1 - tall, Math.max(1, slot - 0.5), tall);
  });
  c.fillStyle = style.getPropertyValue("--quiet");
  c.font = "11px system-ui, sans-serif";
  c.fillText(samples.length ? `latency, up to ${top.toFixed(0)} ms` : "latency over time", 0, 10);
}
