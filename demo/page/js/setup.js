/** The settings that a stream starts with: picture, prompt, seed, smoothing, depth. */

import { get, upload } from "./api.js";
import { LIMIT } from "./protocol_numbers.js";
import { $, input, make, note, onFile, reason } from "./ui.js";

/** @typedef {import("./types.js").PictureEntry & {button: HTMLButtonElement, image: HTMLImageElement}} Choice */

const DEPTH_HELP = "Optional: a grey PNG, brighter is nearer. Without one the scene is treated as flat.";

export class Setup {
  /** @type {?string} id of the chosen picture */
  #picture = null;
  /** @type {?HTMLImageElement} the chosen picture */
  image = null;
  #depth = "";

  /** @param {(image: HTMLImageElement) => void} chosen called when a picture was chosen */
  constructor(chosen) {
    this.chosen = chosen;
    onFile(input("upload"), (file) => this.#upload(file));
    onFile(input("depth"), (file) => this.#uploadDepth(file));
    $("dice").onclick = () => (input("seed").value = String(Math.floor(Math.random() * (LIMIT.seed + 1))));
    for (const [id, unit] of [["smooth", "s"], ["speed", "widths/s"]]) {
      const show = () => ($(`${id}-out`).textContent = Number(input(id).value) ? `${Number(input(id).value).toFixed(2)} ${unit}` : "none");
      input(id).oninput = show;
      show();
    }
  }

  /** The header of `start`. @returns {import("./types.js").StartSettings} */
  get settings() {
    return {
      picture: this.#picture ?? "", prompt: input("prompt").value.trim(), seed: seed(input("seed").value), depth: this.#depth,
      smoothing: { smooth_seconds: Number(input("smooth").value), max_speed: Number(input("speed").value), release: input("release").value },
    };
  }

  async load() {
    /** @type {import("./types.js").PictureEntry[]} */
    const pictures = await get("pictures");
    const choices = pictures.map((picture) => this.#add(picture));
    if (choices.length) await this.#choose(choices[0]);
  }

  /** @param {import("./types.js").PictureEntry} picture @returns {Choice} */
  #add(picture) {
    const image = make("img", { src: `api/pictures/${encodeURIComponent(picture.id)}.png`, alt: "" });
    const button = make("button", { type: "button", title: picture.title }, image);
    const choice = { ...picture, button, image };
    button.onclick = () => this.#choose(choice);
    button.setAttribute("role", "radio");
    button.setAttribute("aria-label", picture.title);
    button.setAttribute("aria-checked", "false");
    button.onkeydown = (event) => this.#walk(event, button);
    button.dataset.id = picture.id;
    $("pictures").append(button);
    return choice;
  }

  /** Moves from picture to picture with the arrow keys, as in any group of radio buttons. @param {KeyboardEvent} event @param {HTMLButtonElement} button */
  #walk(event, button) {
    const step = /** @type {Record<string, number>} */ ({ ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 })[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const all = this.#buttons;
    const next = all[(all.indexOf(button) + step + all.length) % all.length];
    next.focus();
    next.click();
  }

  get #buttons() {
    return /** @type {HTMLButtonElement[]} */ (Array.from($("pictures").children));
  }

  /** @param {Choice} picture */
  async #choose(picture) {
    this.#picture = picture.id;
    for (const button of this.#buttons) {
      const chosen = button === picture.button;
      button.setAttribute("aria-checked", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    }
    if (picture.prompt !== undefined) input("prompt").value = picture.prompt;
    $("crop").hidden = !picture.crop;
    $("crop").textContent = picture.crop ? cropText(picture) : "";
    this.#setDepth("", DEPTH_HELP);
    try {
      await picture.image.decode();
    } catch {
      note(`The picture "${picture.title}" could not be loaded. Reload the page, or choose another one.`, { bad: true });
      return;
    }
    if (this.#picture !== picture.id) return;
    this.image = picture.image;
    this.chosen(picture.image);
  }

  /** @param {File} file */
  async #upload(file) {
    try {
      const sent = await upload("pictures", file);
      const picture = this.#add({ ...sent, title: file.name || "Your picture" });
      await this.#choose(picture);
      picture.button.scrollIntoView({ block: "nearest" });
    } catch (error) {
      note(`${file.name}: ${reason(error)}`, { bad: true });
    }
  }

  /** @param {File} file */
  async #uploadDepth(file) {
    try {
      const { id } = await upload("depth", file);
      this.#setDepth(id, `${file.name} is used from the next start on.`);
    } catch (error) {
      note(`${file.name}: ${reason(error)}`, { bad: true });
    }
  }

  /** @param {string} id @param {string} text */
  #setDepth(id, text) {
    this.#depth = id;
    $("depth-note").textContent = text;
  }
}

/** Returns the seed that a text states, within the limits. @param {string} text */
function seed(text) {
  const value = Math.trunc(Number(text));
  return Number.isFinite(value) ? Math.min(Math.max(value, 0), LIMIT.seed) : 0;
}

/** Describes the part of an upload that is used. @param {import("./types.js").PictureEntry} picture */
function cropText({ width, height, crop }) {
  const [left, top, right, bottom] = crop ?? [0, 0, width, height];
  const size = `${width} × ${height} pixels`;
  const whole = right - left === width && bottom - top === height;
  return whole ? `${size}, used whole.` : `${size}; its middle ${right - left} × ${bottom - top} is used.`;
}
