/** What a stream begins with: picture, prompt, seed, hand, depth. */

import { get, upload } from "./api.js";
import { $, make, note, onFile } from "./ui.js";

export class Setup {
  #picture = null; // id
  image = null; // of the chosen picture
  #depth = "";

  /** @param {(image: HTMLImageElement) => void} show called with the picture that was chosen */
  constructor(show) {
    this.show = show;
    onFile($("upload"), (file) => this.#upload(file));
    onFile($("depth"), (file) => this.#uploadDepth(file));
    $("dice").onclick = () => ($("seed").value = Math.floor(Math.random() * 2 ** 31));
    for (const [id, unit, none] of [["smooth", "s", "none"], ["speed", "widths/s", "none"]]) {
      const tell = () => ($(`${id}-out`).textContent = Number($(id).value) ? `${Number($(id).value).toFixed(2)} ${unit}` : none);
      $(id).oninput = tell;
      tell();
    }
  }

  /** The header of `start`. */
  get settings() {
    return {
      picture: this.#picture ?? "", prompt: $("prompt").value.trim(), seed: seed($("seed").value), depth: this.#depth,
      smoothing: { smooth_seconds: Number($("smooth").value), max_speed: Number($("speed").value), release: $("release").value },
    };
  }

  async load() {
    const pictures = await get("pictures");
    pictures.forEach((picture) => this.#add(picture));
    if (pictures.length) await this.#choose(pictures[0]);
  }

  #add(picture) {
    const image = make("img", { src: `api/pictures/${encodeURIComponent(picture.id)}.png`, alt: "" });
    const button = make("button", { type: "button", title: picture.title, onclick: () => this.#choose(picture) }, image);
    button.setAttribute("role", "radio");
    button.setAttribute("aria-label", picture.title);
    button.setAttribute("aria-checked", "false");
    button.onkeydown = (event) => this.#walk(event, button);
    button.dataset.id = picture.id;
    picture.button = button;
    picture.image = image;
    $("pictures").append(button);
  }

  /** Arrow keys go from picture to picture, as in any group of radio buttons. */
  #walk(event, button) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const all = [...$("pictures").children];
    const next = all[(all.indexOf(button) + step + all.length) % all.length];
    next.focus();
    next.click();
  }

  async #choose(picture) {
    this.#picture = picture.id;
    for (const button of $("pictures").children) {
      const chosen = button === picture.button;
      button.setAttribute("aria-checked", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    }
    if (picture.prompt !== undefined) $("prompt").value = picture.prompt;
    $("crop").hidden = !picture.crop;
    $("crop").textContent = picture.crop ? cropText(picture) : "";
    this.#setDepth("", "Optional: a grey PNG, brighter is nearer. Without one the scene is a plane.");
    try {
      await picture.image.decode();
    } catch {
      note(`The picture "${picture.title}" could not be loaded. Reload the page, or choose another one.`, { bad: true });
      return;
    }
    if (this.#picture !== picture.id) return;
    this.image = picture.image;
    this.show(picture.image);
  }

  async #upload(file) {
    try {
      const sent = await upload("pictures", file);
      const picture = { ...sent, title: file.name || "Your picture" };
      this.#add(picture);
      await this.#choose(picture);
      picture.button.scrollIntoView({ block: "nearest" });
    } catch (error) {
      note(`${file.name}: ${error.message}`, { bad: true });
    }
  }

  async #uploadDepth(file) {
    try {
      const { id } = await upload("depth", file);
      this.#setDepth(id, `${file.name} is used from the next start on.`);
    } catch (error) {
      note(`${file.name}: ${error.message}`, { bad: true });
    }
  }

  #setDepth(id, text) {
    this.#depth = id;
    $("depth-note").textContent = text;
  }
}

function seed(text) {
  const value = Math.trunc(Number(text));
  return Number.isFinite(value) ? Math.min(Math.max(value, 0), 2 ** 31 - 1) : 0;
}

/** What the server cut out of an upload. */
function cropText({ width, height, crop: [left, top, right, bottom] }) {
  const size = `${width} × ${height} pixels`;
  const whole = right - left === width && bottom - top === height;
  return whole ? `${size}, used whole.` : `${size}; its middle ${right - left} × ${bottom - top} is used.`;
}
