/** One WebSocket to the server: what state the session is in, and messages in and out. Knows no DOM but EventTarget and WebSocket. */

import { CLOSED, VERSION, decode, encode, encodeControls } from "./protocol.js";

const REFUSED_START = ["picture", "depth", "start"]; // codes of errors after which nothing plays

/**
 * States: "idle" (no socket), "connecting", "queued", "ready" (our turn, nothing runs), "starting", "streaming", "paused", "stopping", "lost".
 * Events: "state"; "message" (detail: a decoded message); "trouble" (detail: text, the session goes on).
 */
export class Session extends EventTarget {
  #socket = null;
  #settings = null; // to start with when it is our turn
  #expected = false; // whether the socket's end is our own wish
  state = "idle";
  position = 0; // in the queue, 1 is next
  why = ""; // the connection was lost
  welcome = null;

  /** @param {string} address ws:// or wss:// */
  constructor(address) {
    super();
    this.address = address;
  }

  /** Whether chunks come, or would if it were not paused. */
  get running() {
    return this.state === "streaming" || this.state === "paused";
  }

  /** Whether the server listens to snapshots. */
  get takesControls() {
    return this.running || this.state === "starting";
  }

  /** Begins (anew) with these settings, as soon as it is our turn. @param {object} settings the header of `start` */
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
    this.#expected = true;
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

  prompt(prompt) {
    if (this.running) this.#send("prompt", { prompt });
  }

  /** What is played, or was played last. */
  save(title) {
    if (this.running || this.state === "ready") this.#send("save", { title });
  }

  /** @param {number} waited_ms how long the chunk lay here before its first frame was shown */
  ack(seq, waited_ms) {
    if (this.running) this.#send("ack", { seq, waited_ms });
  }

  /** @param {Uint8Array} jpeg */
  webcam(jpeg) {
    if (this.state === "streaming") this.#send("webcam", {}, jpeg);
  }

  controls(snapshot) {
    this.#socket.send(encodeControls(snapshot));
  }

  #send(name, header, payload) {
    this.#socket.send(encode(name, header, payload));
  }

  #to(state) {
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }

  #connect() {
    this.#expected = false;
    this.why = "";
    this.#to("connecting");
    const socket = new WebSocket(this.address);
    socket.binaryType = "arraybuffer";
    // A token, where there is one, is in a cookie.
    socket.onopen = () => socket.send(encode("hello", { protocol: VERSION, token: "" }));
    socket.onmessage = ({ data }) => this.#hear(data);
    socket.onclose = ({ code, reason }) => this.#closed(code, reason);
    this.#socket = socket;
  }

  #start() {
    this.#send("start", this.#settings);
    this.#to("starting");
  }

  #hear(data) {
    let message;
    try {
      message = decode(data);
    } catch (error) {
      this.dispatchEvent(new CustomEvent("trouble", { detail: error.message }));
      return;
    }
    this.#follow(message);
    this.dispatchEvent(new CustomEvent("message", { detail: message }));
  }

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

  #closed(code, reason) {
    this.#socket = null;
    const calm = this.#expected || (code === 4000 && this.state === "ready");
    this.why ||= CLOSED[code] ?? (reason || `The connection was closed (code ${code}).`);
    this.#to(calm ? "idle" : "lost");
  }
}
