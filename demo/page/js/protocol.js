/** The wire (docs/demo-protocol.md) without the wire: messages to bytes and back. Knows no DOM. */

export const VERSION = 2;

export const KIND = Object.freeze({
  hello: 1, start: 2, controls: 3, ack: 4, pause: 5, resume: 6, stop: 7, reset: 8, refresh_sink: 9, prompt: 10, webcam: 11, save: 12,
  welcome: 64, queued: 65, started: 66, chunk: 67, paused: 68, resumed: 69, stopped: 70, changed: 71, saved: 72, error: 73,
});
const NAME = Object.freeze(Object.fromEntries(Object.entries(KIND).map(([name, kind]) => [kind, name])));
const HEAD = 8;

/** What a close code means to a person; codes that are not here are named by their number. */
export const CLOSED = Object.freeze({
  1000: "The session has ended.",
  1001: "The server has stopped.",
  1006: "The connection broke.",
  1008: "The server refused this page.",
  1009: "A message was too large for the server.",
  1011: "The server had a fault. Its log says more.",
  1013: "Too many pages are open on this server.",
  4000: "The session was closed because nothing happened for a while.",
});

/**
 * @param {string} name @param {object} header @param {ArrayBufferView=} payload
 * @returns {Uint8Array}
 */
export function encode(name, header = {}, payload = undefined) {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const tail = payload ? new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength) : new Uint8Array(0);
  const bytes = new Uint8Array(HEAD + text.length + tail.length);
  bytes.set([0x4d, 0x53, VERSION, KIND[name]]);
  new DataView(bytes.buffer).setUint32(4, text.length, true);
  bytes.set(text, HEAD);
  bytes.set(tail, HEAD + text.length);
  return bytes;
}

/**
 * @param {ArrayBuffer} buffer
 * @returns {{name: string, header: object, payload: Uint8Array}}
 */
export function decode(buffer) {
  const bytes = new Uint8Array(buffer);
  if (bytes.length < HEAD || bytes[0] !== 0x4d || bytes[1] !== 0x53) throw new Error("The server sent something that is no message of this protocol.");
  if (bytes[2] !== VERSION) throw new Error(`The server speaks version ${bytes[2]} of the protocol, this page version ${VERSION}. Reload the page.`);
  const length = new DataView(buffer).getUint32(4, true);
  const name = NAME[bytes[3]];
  if (!name || HEAD + length > bytes.length) throw new Error("The server sent a message that this page does not know. Reload the page.");
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(HEAD, HEAD + length)));
  return { name, header, payload: bytes.subarray(HEAD + length) };
}

/**
 * A snapshot of the controls (see controls.js) as a message.
 * @param {{revision: number, points: {id: number, x: number, y: number, pinned: boolean}[], paths: object[], camera: ?object, transfer: string}} snapshot
 */
export function encodeControls({ revision, points, paths, camera, transfer }) {
  const rows = new Float32Array(points.length * 4);
  points.forEach(({ id, x, y, pinned }, i) => rows.set([id, x, y, pinned ? 1 : 0], i * 4));
  return encode("controls", { revision, count: points.length, paths, camera, transfer }, rows);
}

/** The payload of a chunk: its frames' bytes, and the tracks it was asked to follow, T frames of n points (x, y, visible). */
export function splitChunk(header, payload) {
  let at = 0;
  const frames = header.lengths.map((length) => payload.subarray(at, (at += length)));
  const rows = new Float32Array(payload.slice(at, at + header.frames * header.points * 12).buffer);
  const stride = header.points * 3;
  return { frames, tracks: header.lengths.map((_, t) => rows.subarray(t * stride, (t + 1) * stride)) };
}

/** Interleaved RGB to the RGBA that a canvas takes. */
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
