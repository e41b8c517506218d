/** Motion transfer: the tracks of a clip or of the webcam move the picture. */

import { upload } from "./api.js";
import { $, context2d, input, make, note, onFile, reason } from "./ui.js";

const WEBCAM_MS = 100; // between two frames of the webcam
const LONGER_SIDE = 256; // pixels of a sent frame: the tracker needs no more

export class Motion {
  /** @type {?MediaStream} */
  #stream = null;
  #timer = 0;
  #canvas = document.createElement("canvas");

  /**
   * @param {import("./controls.js").Controls} controls @param {import("./session.js").Session} session
   * @param {import("./types.js").MotionEntry[]} known clips that the server has already
   */
  constructor(controls, session, known) {
    this.controls = controls;
    this.session = session;
    known.forEach(({ id, frames }) => $("motion").append(make("option", { value: id, textContent: `an earlier clip, ${frames} frames` })));
    if ("mediaDevices" in navigator) $("motion").append(make("option", { value: "webcam", textContent: "my webcam, live" }));
    this.#select.onchange = () => this.#choose(this.#select.value);
    onFile(input("clip"), (file) => this.#upload(file));
  }

  get #select() {
    return /** @type {HTMLSelectElement} */ ($("motion"));
  }

  /** @param {string} id */
  async #choose(id) {
    if (id !== "webcam") this.#stopWebcam();
    else if (!(await this.#startWebcam())) id = this.#select.value = "";
    this.controls.setTransfer(id, performance.now());
  }

  /** @param {File} file */
  async #upload(file) {
    $("motion-note").textContent = `Tracking points in ${file.name} …`;
    try {
      const { id, frames, points } = await upload("motions", file);
      $("motion").append(make("option", { value: id, textContent: file.name }));
      this.#select.value = id;
      $("motion-note").textContent = `${points} points over ${frames} frames.`;
      await this.#choose(id);
    } catch (error) {
      $("motion-note").textContent = "Its tracks move the picture while it streams.";
      note(`${file.name}: ${reason(error)}`, { bad: true });
    }
  }

  async #startWebcam() {
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: { width: 320, height: 240 }, audio: false });
    } catch (error) {
      note(`The webcam cannot be used: ${reason(error)}. Allow it for this page, or upload a clip.`, { bad: true });
      return false;
    }
    const view = /** @type {HTMLVideoElement} */ ($("camera-view"));
    view.srcObject = this.#stream;
    view.hidden = false;
    await view.play();
    this.#timer = setInterval(() => this.#send(view), WEBCAM_MS);
    return true;
  }

  #stopWebcam() {
    clearInterval(this.#timer);
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    $("camera-view").hidden = true;
  }

  /** Sends a frame, mirrored like the preview, so that left and right are those of a mirror. @param {HTMLVideoElement} view */
  #send(view) {
    if (this.session.state !== "streaming" || !view.videoWidth) return;
    const scale = Math.min(1, LONGER_SIDE / Math.max(view.videoWidth, view.videoHeight));
    const [width, height] = [Math.round(view.videoWidth * scale), Math.round(view.videoHeight * scale)];
    if (this.#canvas.width !== width || this.#canvas.height !== height) Object.assign(this.#canvas, { width, height });
    const context = context2d(this.#canvas);
    context.setTransform(-1, 0, 0, 1, width, 0);
    context.drawImage(view, 0, 0, width, height);
    this.#canvas.toBlob(async (blob) => blob && this.session.webcam(new Uint8Array(await blob.arrayBuffer())), "image/jpeg", 0.8);
  }
}
