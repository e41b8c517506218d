/** Motion transfer: a clip's tracks, or the webcam's, drive the picture. */

import { upload } from "./api.js";
import { $, make, note, onFile } from "./ui.js";

const EVERY = 100; // ms between two pictures of the webcam
const LONGER_SIDE = 256; // pixels that are sent: the tracker needs no more

export class Motion {
  #stream = null;
  #timer = null;
  #sketch = document.createElement("canvas");

  /**
   * @param {import("./controls.js").Controls} controls @param {import("./session.js").Session} session
   * @param {{id: string, frames: number, points: number}[]} known clips that the server has already
   */
  constructor(controls, session, known) {
    this.controls = controls;
    this.session = session;
    known.forEach(({ id, frames }) => $("motion").append(make("option", { value: id, textContent: `an earlier clip, ${frames} frames` })));
    if (navigator.mediaDevices?.getUserMedia) $("motion").append(make("option", { value: "webcam", textContent: "my webcam, live" }));
    $("motion").onchange = () => this.#choose($("motion").value);
    onFile($("clip"), (file) => this.#upload(file));
  }

  async #choose(id) {
    if (id !== "webcam") this.#stopWebcam();
    else if (!(await this.#startWebcam())) id = $("motion").value = "";
    this.controls.setTransfer(id, performance.now());
  }

  async #upload(file) {
    $("motion-note").textContent = `Following points through ${file.name} …`;
    try {
      const { id, frames, points } = await upload("motions", file);
      $("motion").append(make("option", { value: id, textContent: file.name }));
      $("motion").value = id;
      $("motion-note").textContent = `${points} points over ${frames} frames.`;
      await this.#choose(id);
    } catch (error) {
      $("motion-note").textContent = "Its tracks drive the picture while it streams.";
      note(`${file.name}: ${error.message}`, { bad: true });
    }
  }

  async #startWebcam() {
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: { width: 320, height: 240 }, audio: false });
    } catch (error) {
      note(`The webcam cannot be used: ${error.message}. Allow it for this page, or upload a clip.`, { bad: true });
      return false;
    }
    const view = $("camera-view");
    view.srcObject = this.#stream;
    view.hidden = false;
    await view.play();
    this.#timer = setInterval(() => this.#send(view), EVERY);
    return true;
  }

  #stopWebcam() {
    clearInterval(this.#timer);
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    $("camera-view").hidden = true;
  }

  /** Mirrored, as the preview is: who moves a hand to the right sees it go right. */
  #send(view) {
    if (this.session.state !== "streaming" || !view.videoWidth) return;
    const scale = Math.min(1, LONGER_SIDE / Math.max(view.videoWidth, view.videoHeight));
    const [width, height] = [Math.round(view.videoWidth * scale), Math.round(view.videoHeight * scale)];
    if (this.#sketch.width !== width || this.#sketch.height !== height) Object.assign(this.#sketch, { width, height });
    const context = this.#sketch.getContext("2d");
    context.setTransform(-1, 0, 0, 1, width, 0);
    context.drawImage(view, 0, 0, width, height);
    this.#sketch.toBlob(async (blob) => blob && this.session.webcam(new Uint8Array(await blob.arrayBuffer())), "image/jpeg", 0.8);
  }
}
