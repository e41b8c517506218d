/** Mouse, pen, fingers and the cursor keys on the picture, into Controls. Every pointer is a hand of its own. */

import { announce } from "./ui.js";

const KEYS = "keys"; // the pointer that the keyboard is
const NUDGE = 0.02; // shares of the frame that a key moves what is held

const ARROWS = Object.freeze({ ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] });

export class Hands {
  #busy = new Map(); // pointer -> the tool it went down with
  tool = "drag";
  hover = null; // where a mouse is, for the brush's ring
  cursor = null; // where the keyboard's cursor is; null while the picture has no focus
  first = () => {}; // called when something is taken hold of

  /** @param {HTMLCanvasElement} canvas @param {import("./controls.js").Controls} controls @param {() => void} changed */
  constructor(canvas, controls, changed) {
    this.canvas = canvas;
    this.controls = controls;
    this.changed = changed;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(name, (event) => this.#end(event.pointerId, event.timeStamp));
    }
    canvas.addEventListener("pointerleave", () => this.#hoverAt(null));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("focus", () => this.#focus(canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => this.#focus(false));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  letGo(now) {
    for (const pointer of [...this.#busy.keys()]) this.#end(pointer, now);
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  #down(event) {
    if (event.button !== 0) return;
    event.preventDefault(); // the focus stays where keys mean the camera
    if (document.activeElement !== this.canvas) document.activeElement?.blur();
    this.canvas.setPointerCapture(event.pointerId);
    this.#begin(event.pointerId, this.#place(event), event.timeStamp);
  }

  #move(event) {
    const fine = this.#busy.get(event.pointerId) === "path" ? event.getCoalescedEvents() : [];
    for (const each of fine.length ? fine : [event]) this.#to(event.pointerId, this.#place(each), event.timeStamp);
    if (event.pointerType === "mouse") this.#hoverAt(this.#place(event));
  }

  #hoverAt(place) {
    this.hover = place;
    this.changed();
  }

  #focus(visible) {
    if (!visible) this.#end(KEYS, performance.now());
    this.cursor = visible ? (this.cursor ?? [0.5, 0.5]) : null;
    this.changed();
  }

  #begin(pointer, place, now) {
    const { controls, tool } = this;
    this.#busy.set(pointer, tool);
    if (tool === "drag") {
      const count = controls.grab(pointer, place, now);
      if (pointer === KEYS) announce(`Holding ${count} points. Arrow keys move them, G lets go.`);
    } else if (tool === "pin") controls.pin(place, now);
    else if (tool === "erase") controls.erase(place, now);
    else controls.startPath(pointer, place);
    if (tool === "path" && pointer === KEYS) announce("Drawing a path. Arrow keys extend it, G ends it.");
    this.first(tool);
    this.changed();
  }

  #to(pointer, place, now) {
    const tool = this.#busy.get(pointer);
    if (!tool) return;
    if (tool === "drag") this.controls.drag(pointer, place, now);
    else if (tool === "pin") this.controls.pin(place, now);
    else if (tool === "erase") this.controls.erase(place, now);
    else this.controls.extendPath(pointer, place);
    this.changed();
  }

  #end(pointer, now) {
    const tool = this.#busy.get(pointer);
    if (!this.#busy.delete(pointer)) return;
    this.controls.release(pointer, now);
    const made = this.controls.finishPath(pointer, now);
    if (made === "full") announce("This path's group is larger than the model takes. Use a smaller brush or a wider grid.");
    if (pointer === KEYS) announce(tool === "path" ? "The path is drawn." : "Let go.");
    this.changed();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const arrow = ARROWS[event.key];
    if (arrow) this.#step(arrow, event);
    else if (event.key.toLowerCase() === "g" && !event.repeat) this.#toggle(event.timeStamp);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #step([dx, dy], event) {
    const held = this.#busy.has(KEYS);
    const { columns, rows } = this.controls;
    const [stepX, stepY] = held ? [NUDGE, NUDGE * this.controls.aspect] : [1 / columns, 1 / rows];
    const within = (share) => Math.min(Math.max(share, 0), 1);
    const [x, y] = this.cursor ?? [0.5, 0.5];
    this.cursor = [within(x + dx * stepX), within(y + dy * stepY)];
    this.#to(KEYS, this.cursor, event.timeStamp);
    this.changed();
  }

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
