/** The camera's sliders and keys. A slider returns to the middle when it is released. */

import { CAMERA } from "./controls.js";
import { make } from "./ui.js";

/** @typedef {import("./types.js").Axis} Axis */

/** @type {Readonly<Record<Axis, string>>} */
const LABEL = Object.freeze({ pan_x: "Pan ↔", pan_y: "Pan ↕", zoom: "Zoom", rotate: "Rotate", orbit: "Orbit" });
const AXES = /** @type {Axis[]} */ (Object.keys(CAMERA));
/** Share of a slider's range that a key sets. */
const KEY_SHARE = 0.5;

export class Camera {
  /** @type {Map<Axis, HTMLInputElement>} */
  #sliders = new Map();

  /** @param {HTMLElement} parent @param {import("./controls.js").Controls} controls */
  constructor(parent, controls) {
    this.controls = controls;
    for (const name of AXES) {
      const slider = make("input", { type: "range", min: "-1", max: "1", step: "0.02", value: "0", id: `camera-${name}` });
      slider.addEventListener("input", (event) => this.#set(name, event.timeStamp));
      for (const end of ["pointerup", "pointercancel", "keyup", "blur"]) slider.addEventListener(end, () => this.release(name));
      this.#sliders.set(name, slider);
      parent.append(make("label", {}, LABEL[name], slider));
    }
  }

  /** @param {Axis} name @param {number} sign @param {number} now */
  hold(name, sign, now) {
    this.#slider(name).value = String(sign * KEY_SHARE);
    this.#set(name, now);
  }

  /** @param {Axis} name */
  release(name) {
    this.#slider(name).value = "0";
    this.#set(name, performance.now());
  }

  releaseAll() {
    AXES.forEach((name) => this.release(name));
  }

  /** @param {Axis} name */
  #slider(name) {
    return /** @type {HTMLInputElement} */ (this.#sliders.get(name));
  }

  /** @param {Axis} name @param {number} now */
  #set(name, now) {
    this.controls.setCamera({ [name]: Number(this.#slider(name).value) * CAMERA[name] }, now);
  }
}
