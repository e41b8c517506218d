/** Passes mouse, pen, touch and cursor keys on the picture to Controls. Several pointers act independently. */

import { announce } from "./ui.js";

/** @typedef {import("./types.js").Place} Place */
/** @typedef {import("./types.js").Tool} Tool */
/** @typedef {number | "keys"} Pointer */

const KEYS = "keys"; // the pointer that stands for the keyboard
const NUDGE = 0.02; // shares of the frame by which a key moves the points that are held

/** @type {Readonly<Record<string, [number, number]>>} */
const ARROWS = Object.freeze({ ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] });

export class PointerInput {
  /** @type {Map<Pointer, Tool>} the tool that each pressed pointer uses */
  #busy = new Map();
  /** @type {Tool} */
  tool = "drag";
  /** @type {?Place} of the mouse, for the brush's ring */
  hover = null;
  /** @type {?Place} of the keyboard's cursor; null while the picture has no focus */
  cursor = null;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./controls.js").Controls} controls
   * @param {() => void} changed called when what is drawn over the picture has changed
   * @param {(tool: Tool) => void} used called when a pointer begins to use a tool
   */
  constructor(canvas, controls, changed, used) {
    this.canvas = canvas;
    this.controls = controls;
    this.changed = changed;
    this.used = used;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(name, (event) => this.#end(/** @type {PointerEvent} */ (event).pointerId, event.timeStamp));
    }
    canvas.addEventListener("pointerleave", () => this.#hoverAt(null));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("focus", () => this.#focus(canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => this.#focus(false));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Releases every pointer. @param {number} now */
  letGo(now) {
    for (const pointer of [...this.#busy.keys()]) this.#end(pointer, now);
  }

  /** @param {MouseEvent} event @returns {Place} */
  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (event.button !== 0) return;
    event.preventDefault(); // keeps the focus where the arrow keys move the camera
    const focused = document.activeElement;
    if (focused instanceof HTMLElement && focused !== this.canvas) focused.blur();
    this.canvas.setPointerCapture(event.pointerId);
    this.#begin(event.pointerId, this.#place(event), event.timeStamp);
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const fine = this.#busy.get(event.pointerId) === "path" ? event.getCoalescedEvents() : [];
    for (const each of fine.length ? fine : [event]) this.#to(event.pointerId, this.#place(each), event.timeStamp);
    if (event.pointerType === "mouse") this.#hoverAt(this.#place(event));
  }

  /** @param {?Place} place */
  #hoverAt(place) {
    this.hover = place;
    this.changed();
  }

  /** @param {boolean} visible */
  #focus(visible) {
    if (!visible) this.#end(KEYS, performance.now());
    this.cursor = visible ? (this.cursor ?? [0.5, 0.5]) : null;
    this.changed();
  }

  /** @param {Pointer} pointer @param {Place} place @param {number} now */
  #begin(pointer, place, now) {
    const { controls, tool } = this;
    this.#busy.set(pointer, tool);
    if (tool === "drag") {
      const count = controls.grab(pointer, place, now);
      if (pointer === KEYS) announce(`Holding ${count} points. Arrow keys move them, G releases them.`);
    } else if (tool === "pin") controls.pin(place, now);
    else if (tool === "erase") controls.erase(place, now);
    else controls.startPath(pointer, place);
    if (tool === "path" && pointer === KEYS) announce("Drawing a path. Arrow keys extend it, G ends it.");
    this.used(tool);
    this.changed();
  }

  /** @param {Pointer} pointer @param {Place} place @param {number} now */
  #to(pointer, place, now) {
    const tool = this.#busy.get(pointer);
    if (!tool) return;
    if (tool === "drag") this.controls.drag(pointer, place, now);
    else if (tool === "pin") this.controls.pin(place, now);
    else if (tool === "erase") this.controls.erase(place, now);
    else this.controls.extendPath(pointer, place);
    this.changed();
  }

  /** @param {Pointer} pointer @param {number} now */
  #end(pointer, now) {
    const tool = this.#busy.get(pointer);
    if (!this.#busy.delete(pointer)) return;
    this.controls.release(pointer, now);
    const made = this.controls.finishPath(pointer, now);
    if (made === "full") announce("This path moves more points than the model takes. Use a smaller brush or a coarser grid.");
    if (pointer === KEYS) announce(tool === "path" ? "The path is drawn." : "Released.");
    this.changed();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const arrow = ARROWS[event.key];
    if (arrow) this.#step(arrow, event);
    else if (event.key.toLowerCase() === "g" && !event.repeat) this.#toggle(event.timeStamp);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {[number, number]} step @param {KeyboardEvent} event */
  #step([dx, dy], event) {
    const held = this.#busy.has(KEYS);
    const { columns, rows } = this.controls;
    const [stepX, stepY] = held ? [NUDGE, NUDGE * this.controls.aspect] : [1 / columns, 1 / rows];
    const within = (/** @type {number} */ share) => Math.min(Math.max(share, 0), 1);
    const [x, y] = this.cursor ?? [0.5, 0.5];
    this.cursor = [within(x + dx * stepX), within(y + dy * stepY)];
    this.#to(KEYS, this.cursor, event.timeStamp);
    this.changed();
  }

  /** @param {number} now */
  #toggle(now) {
    if (this.#busy.has(KEYS)) {
      this.#end(KEYS, now);
      return;
    }
    this.cursor ??= [0.5, 0.5];
    this.#begin(KEYS, this.cursor, now);
    if (this.tool !== "pin" && this.tool !== "erase") return;
    this.#end(KEYS, now);
    announce(this.tool === "pin" ? "Pinned." : "Erased.");
  }
}
