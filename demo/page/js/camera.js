/** The camera's sliders and keys: both are held, and spring back. */

import { CAMERA } from "./controls.js";
import { make } from "./ui.js";

const LABEL = Object.freeze({ pan_x: "Pan ↔", pan_y: "Pan ↕", zoom: "Zoom", rotate: "Rotate", orbit: "Orbit" });
/** Half of what a slider can: keys know no "a little". */
const KEY_SHARE = 0.5;

export class Camera {
  #sliders = {};

  /** @param {HTMLElement} parent @param {import("./controls.js").Controls} controls */
  constructor(parent, controls) {
    this.controls = controls;
    for (const name of Object.keys(CAMERA)) {
      const slider = make("input", { type: "range", min: "-1", max: "1", step: "0.02", value: "0", id: `camera-${name}` });
      slider.addEventListener("input", (event) => this.#set(name, event.timeStamp));
      for (const end of ["pointerup", "pointercancel", "keyup", "blur"]) slider.addEventListener(end, () => this.#spring(name));
      this.#sliders[name] = slider;
      parent.append(make("label", {}, LABEL[name], slider));
    }
  }

  hold(name, sign, now) {
    this.#sliders[name].value = sign * KEY_SHARE;
    this.#set(name, now);
  }

  letGo(name) {
    this.#spring(name);
  }

  letGoOfAll() {
    Object.keys(CAMERA).forEach((name) => this.#spring(name));
  }

  #set(name, now) {
    this.controls.setCamera({ [name]: Number(this.#sliders[name].value) * CAMERA[name] }, now);
  }

  #spring(name) {
    this.#sliders[name].value = 0;
    this.#set(name, performance.now());
  }
}
