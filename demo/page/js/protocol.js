/** Messages of docs/demo-protocol.md to bytes and back. It knows neither socket nor DOM. */

import { CLOSE_CODE, HEAD_BYTES, KIND, MAGIC, VERSION } from "./protocol_numbers.js";

/** @typedef {import("./types.js").ChunkHeader} ChunkHeader */

/** @type {Readonly<Record<number, string>>} */
const NAME = Object.freeze(Object.fromEntries(Object.entries(KIND).map(([name, kind]) => [kind, name])));

/**
 * What the page says when the socket closes; other codes are shown as numbers.
 * @type {Readonly<Record<number, string>>}
 */
export const CLOSED = Object.freeze({
  [CLOSE_CODE.left]: "The session has ended.",
  [CLOSE_CODE.stopped]: "The server has stopped.",
  1006: "The connection was lost.",
  [CLOSE_CODE.refused]: "The server refused this page.",
  1009: "A message was too large for the server.",
  [CLOSE_CODE.fault]: "The server had an error. Its log has the details.",
  [CLOSE_CODE.full]: "Too many pages are open on this server.",
  [CLOSE_CODE.idle]: "The session was closed because nothing happened for a while.",
});

/**
 * @param {string} name
 * @param {object} header
 * @param {ArrayBufferView=} payload
 */
export function encode(name, header = {}, payload = undefined) {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const tail = payload ? new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength) : new Uint8Array(0);
  const bytes = new Uint8Array(HEAD_BYTES + text.length + tail.length);
  bytes.set([...MAGIC, VERSION, KIND[/** @type {keyof typeof KIND} */ (name)]]);
  new DataView(bytes.buffer).setUint32(4, text.length, true);
  bytes.set(text, HEAD_BYTES);
  bytes.set(tail, HEAD_BYTES + text.length);
  return bytes;
}

/**
 * @param {ArrayBuffer} buffer
 * @returns {import("./types.js").Message}
 */
export function decode(buffer) {
  const bytes = new Uint8Array(buffer);
  const ours = bytes.length >= HEAD_BYTES && MAGIC.every((byte, i) => bytes[i] === byte);
  if (!ours) throw new Error("The server sent something that is not a message of this protocol. Reload the page.");
  if (bytes[2] !== VERSION) throw new Error(`The server uses version ${bytes[2]} of the protocol, this page version ${VERSION}. Reload the page.`);
  const length = new DataView(buffer).getUint32(4, true);
  const name = NAME[bytes[3]];
  if (!name || HEAD_BYTES + length > bytes.length) throw new Error("The server sent a message that this page does not know. Reload the page.");
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(HEAD_BYTES, HEAD_BYTES + length)));
  return { name, header, payload: bytes.subarray(HEAD_BYTES + length) };
}

/**
 * Encodes a snapshot of the controls (controls.js).
 * @param {import("./types.js").SentControls} snapshot
 */
export function encodeControls({ revision, points, paths, camera, transfer }) {
  const rows = new Float32Array(points.length * 4);
  points.forEach(({ id, x, y, pinned }, i) => rows.set([id, x, y, pinned ? 1 : 0], i * 4));
  return encode("controls", { revision, count: points.length, paths, camera, transfer }, rows);
}

/**
 * Splits the payload of a chunk into the bytes of its frames and the tracks of each (x, y, visible of every point).
 * @param {ChunkHeader} header
 * @param {Uint8Array<ArrayBuffer>} payload
 */
export function splitChunk(header, payload) {
  let at = 0;
  const frames = header.lengths.map((length) => payload.subarray(at, (at += length)));
  const rows = new Float32Array(payload.slice(at, at + header.frames * header.points * 12).buffer);
  const stride = header.points * 3;
  return { frames, tracks: header.lengths.map((_, t) => rows.subarray(t * stride, (t + 1) * stride)) };
}

/** Converts interleaved RGB to the RGBA of a canvas. @param {Uint8Array} rgb */
export function rgbToRgba(rgb) {
  const rgba = new Uint8ClampedArray((rgb.length / 3) * 4);
  for (let from = 0, to = 0; from < rgb.length; from += 3, to += 4) {
    rgba[to] = rgb[from];
    rgba[to + 1] = rgb[from + 1];
    rgba[to + 2] = rgb[from + 2];
    rgba[to + 3] = 255;
  }
  return rgba;
}
