/** Draws over the picture: grid, points, paths, tracks, brush. Positions are shares of the frame. */

import { along } from "./controls.js";
import { context2d } from "./ui.js";

/** @typedef {import("./types.js").Place} Place */
/** @typedef {{tracks: ?Float32Array, hover: ?Place, cursor: ?Place, at: number}} Extras at: seconds of the clip */

const COLOUR = Object.freeze({ green: "#2fd576", red: "#ff5a5a", blue: "#5b9bff", white: "#ffffff", shade: "rgb(0 0 0 / 0.55)" });
const TURN = 2 * Math.PI;

export class Overlay {
  #context;
  #valid = false;
  width = 0;
  height = 0;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./controls.js").Controls} controls
   * @param {() => Extras} extras called when it draws
   */
  constructor(canvas, controls, extras) {
    this.canvas = canvas;
    this.controls = controls;
    this.extras = extras;
    this.#context = context2d(canvas);
    this.fit();
    new ResizeObserver(() => this.fit()).observe(canvas);
  }

  /** Notes that something changed, so that the next `drawIfInvalid` draws. */
  invalidate() {
    this.#valid = false;
  }

  /** Draws, if something changed since the last time. Tells whether it did. */
  drawIfInvalid() {
    if (this.#valid) return false;
    this.#valid = true;
    this.#draw(this.extras());
    return true;
  }

  /** Adopts the element's size at the screen's density. */
  fit() {
    const density = window.devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * density);
    this.canvas.height = Math.round(this.height * density);
    this.#context.setTransform(density, 0, 0, density, 0, 0);
    this.invalidate();
  }

  /** @param {Extras} extras */
  #draw({ tracks, hover, cursor, at }) {
    const { controls } = this;
    this.#context.clearRect(0, 0, this.width, this.height);
    const view = controls.view;
    const size = Math.max(3, Math.min(6, this.width / 150));
    this.#dots(controls.grid, 1.6, "rgb(255 255 255 / 0.7)", "rgb(0 0 0 / 0.35)");
    if (tracks) this.#tracks(tracks);
    this.#dots(view.rest, 2, COLOUR.red, COLOUR.shade);
    view.paths.forEach((path) => this.#path(path, size, at));
    view.red.forEach((place) => this.#pin(place, size));
    this.#dots(view.green, size, COLOUR.green, COLOUR.shade);
    if (hover) this.#ring(hover, controls.brush);
    if (cursor) this.#cross(cursor, controls.brush);
  }

  /** @param {Place} place @returns {[number, number]} pixels */
  #at([x, y]) {
    return [x * this.width, y * this.height];
  }

  /** @param {Place[]} places @param {number} radius @param {string} colour @param {string} edge */
  #dots(places, radius, colour, edge) {
    const c = this.#context;
    c.beginPath();
    for (const [x, y] of places.map((place) => this.#at(place))) {
      c.moveTo(x + radius, y);
      c.arc(x, y, radius, 0, TURN);
    }
    c.fillStyle = colour;
    c.strokeStyle = edge;
    c.lineWidth = 1;
    c.fill();
    c.stroke();
  }

  /** Draws a pin: red with a bar, so that colour is not its only mark. @param {Place} place @param {number} size */
  #pin(place, size) {
    const c = this.#context;
    const [x, y] = this.#at(place);
    this.#dots([place], size, COLOUR.red, COLOUR.shade);
    c.beginPath();
    c.moveTo(x - size * 0.5, y);
    c.lineTo(x + size * 0.5, y);
    c.strokeStyle = COLOUR.white;
    c.lineWidth = 1.6;
    c.stroke();
  }

  /** @param {import("./types.js").View["paths"][number]} path @param {number} size @param {number} at seconds of the clip */
  #path({ members, line, seconds, begun }, size, at) {
    const share = begun === null ? 0 : (at - begun) / seconds;
    const [x, y] = along(line, share);
    this.#line(line, COLOUR.shade, 4.5);
    this.#line(line, COLOUR.blue, 2.5);
    this.#arrow(line);
    /** @type {Place[]} */
    const group = members.map((place) => [place[0] + x - line[0][0], place[1] + y - line[0][1]]);
    this.#dots(group, size * 0.8, COLOUR.blue, COLOUR.shade);
  }

  /** @param {Place[]} line @param {string} colour @param {number} width */
  #line(line, colour, width) {
    const c = this.#context;
    c.beginPath();
    line.forEach((place) => c.lineTo(...this.#at(place)));
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.lineJoin = c.lineCap = "round";
    c.stroke();
  }

  /** @param {Place[]} line */
  #arrow(line) {
    if (line.length < 2) return;
    const c = this.#context;
    const [x, y] = this.#at(line[line.length - 1]);
    const [fromX, fromY] = this.#at(line[Math.max(0, line.length - 4)]);
    c.save();
    c.translate(x, y);
    c.rotate(Math.atan2(y - fromY, x - fromX));
    c.beginPath();
    c.moveTo(9, 0);
    c.lineTo(-5, -6);
    c.lineTo(-5, 6);
    c.closePath();
    c.fillStyle = COLOUR.blue;
    c.strokeStyle = COLOUR.shade;
    c.lineWidth = 1;
    c.fill();
    c.stroke();
    c.restore();
  }

  /** Draws rings where the model was asked to have its points in the frame that is shown. @param {Float32Array} rows x, y, visible */
  #tracks(rows) {
    const c = this.#context;
    c.beginPath();
    for (let i = 0; i < rows.length; i += 3) {
      const [x, y] = this.#at([rows[i], rows[i + 1]]);
      if (!rows[i + 2]) continue;
      c.moveTo(x + 4.5, y);
      c.arc(x, y, 4.5, 0, TURN);
    }
    c.lineWidth = 1.2;
    c.strokeStyle = "rgb(255 255 255 / 0.7)";
    c.stroke();
  }

  /** @param {Place} place @param {number} brush */
  #ring(place, brush) {
    const c = this.#context;
    const radius = Math.max(6, brush * this.width);
    for (const { colour, width } of [{ colour: COLOUR.shade, width: 3 }, { colour: COLOUR.white, width: 1.3 }]) {
      c.beginPath();
      c.arc(...this.#at(place), radius, 0, TURN);
      c.strokeStyle = colour;
      c.lineWidth = width;
      c.stroke();
    }
  }

  /** @param {Place} place @param {number} brush */
  #cross(place, brush) {
    const [x, y] = place;
    const arm = 0.018;
    const rise = (arm * this.width) / this.height;
    this.#ring(place, brush);
    for (const { colour, width } of [{ colour: COLOUR.shade, width: 4 }, { colour: COLOUR.white, width: 2 }]) {
      this.#line([[x - arm, y], [x + arm, y]], colour, width);
      this.#line([[x, y - rise], [x, y + rise]], colour, width);
    }
  }
}
