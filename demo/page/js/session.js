/** One WebSocket to the server: the state of the session, and messages in both directions. */

import { CLOSED, decode, encode, encodeControls } from "./protocol.js";
import { CLOSE_CODE, VERSION } from "./protocol_numbers.js";
import { reason } from "./ui.js";

/** @typedef {"idle" | "connecting" | "queued" | "ready" | "starting" | "streaming" | "paused" | "stopping" | "lost"} State */
/** @typedef {import("./types.js").Message} Message */
/** @typedef {import("./types.js").StartSettings} StartSettings */

const REFUSED_START = ["picture", "depth", "start"]; // codes of errors after which nothing plays

/**
 * The session. States: "idle" (no socket), "ready" (our turn, nothing plays), "lost" (the socket was closed), and those whose names say it.
 * Events: "state"; "message" (detail: a decoded message); "trouble" (detail: text; the session goes on).
 */
export class Session extends EventTarget {
  /** @type {?WebSocket} */
  #socket = null;
  /** @type {?StartSettings} used when it is our turn */
  #settings = null;
  #leaving = false; // whether we close the socket ourselves
  /** @type {State} */
  state = "idle";
  position = 0; // in the queue, 1 is next
  why = ""; // reason for which the connection was lost
  /** @type {any} header of `welcome` */
  welcome = null;

  /** @param {string} address ws:// or wss:// */
  constructor(address) {
    super();
    this.address = address;
  }

  /** Calls `take` with every message of the server. @param {(message: Message) => void} take */
  onMessage(take) {
    this.addEventListener("message", (event) => take(/** @type {CustomEvent} */ (event).detail));
  }

  /** Whether a stream is playing or paused. */
  get running() {
    return this.state === "streaming" || this.state === "paused";
  }

  /** Whether the server accepts snapshots of the controls. */
  get takesControls() {
    return this.running || this.state === "starting";
  }

  /** Starts a stream with these settings, now or when it is our turn. @param {StartSettings} settings */
  start(settings) {
    this.#settings = settings;
    if (this.state === "ready" || this.running) this.#start();
    else if (this.state === "idle" || this.state === "lost") this.#connect();
  }

  stop() {
    if (this.running || this.state === "starting") {
      this.#send("stop");
      this.#to("stopping");
    } else if (this.state === "queued" || this.state === "connecting") this.leave();
  }

  leave() {
    this.#leaving = true;
    this.#socket?.close(1000);
  }

  pause() {
    if (this.state !== "streaming") return;
    this.#send("pause");
    this.#to("paused");
  }

  resume() {
    if (this.state !== "paused") return;
    this.#send("resume");
    this.#to("streaming");
  }

  reset() {
    if (this.running) this.#send("reset");
  }

  refreshSink() {
    if (this.running) this.#send("refresh_sink");
  }

  /** @param {string} prompt */
  prompt(prompt) {
    if (this.running) this.#send("prompt", { prompt });
  }

  /** Saves the current or the last stream. @param {string} title */
  save(title) {
    if (this.running || this.state === "ready") this.#send("save", { title });
  }

  /** @param {number} seq @param {number} waited_ms time from the chunk's arrival until its first frame was shown */
  ack(seq, waited_ms) {
    if (this.running) this.#send("ack", { seq, waited_ms });
  }

  /** @param {Uint8Array} jpeg */
  webcam(jpeg) {
    if (this.state === "streaming") this.#send("webcam", {}, jpeg);
  }

  /** @param {import("./types.js").SentControls} snapshot */
  controls(snapshot) {
    this.#socket?.send(encodeControls(snapshot));
  }

  /** @param {string} name @param {object=} header @param {ArrayBufferView=} payload */
  #send(name, header, payload) {
    this.#socket?.send(encode(name, header, payload));
  }

  /** @param {State} state */
  #to(state) {
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }

  #connect() {
    this.#leaving = false;
    this.why = "";
    this.#to("connecting");
    const socket = new WebSocket(this.address);
    socket.binaryType = "arraybuffer";
    // The token, if there is one, is in a cookie.
    socket.onopen = () => socket.send(encode("hello", { protocol: VERSION, token: "" }));
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = (event) => this.#closed(event.code, event.reason);
    this.#socket = socket;
  }

  #start() {
    this.#send("start", this.#settings ?? {});
    this.#to("starting");
  }

  /** @param {ArrayBuffer} data */
  #receive(data) {
    let message;
    try {
      message = decode(data);
    } catch (error) {
      this.dispatchEvent(new CustomEvent("trouble", { detail: reason(error) }));
      return;
    }
    this.#follow(message);
    this.dispatchEvent(new CustomEvent("message", { detail: message }));
  }

  /** @param {Message} message */
  #follow({ name, header }) {
    if (name === "welcome") {
      this.welcome = header;
      this.#start();
    } else if (name === "queued") {
      this.position = header.position;
      this.#to("queued");
    } else if (name === "started" && this.state === "starting") this.#to("streaming");
    else if (name === "stopped") this.#to("ready");
    else if (name === "error") {
      if (this.state === "starting" && REFUSED_START.includes(header.code)) this.#to("ready");
      if (header.fatal) this.why = header.text;
    }
  }

  /** @param {number} code @param {string} text */
  #closed(code, text) {
    this.#socket = null;
    const calm = this.#leaving || (code === CLOSE_CODE.idle && this.state === "ready");
    this.why ||= CLOSED[code] ?? (text || `The connection was closed (code ${code}).`);
    this.#to(calm ? "idle" : "lost");
  }
}
