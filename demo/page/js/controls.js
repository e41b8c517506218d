/**
 * The user's controls: drags (green), pins (red), paths (blue), camera and transferred motion; and the snapshot of them that is sent.
 * Positions are shares of the frame, 0 to 1.
 */

import { LIMIT } from "./protocol_numbers.js";

/** @typedef {import("./types.js").Place} Place */
/** @typedef {import("./types.js").Axis} Axis */
/** @typedef {import("./types.js").DrawnPath} DrawnPath */
/** @typedef {number | string} Pointer */
/** @typedef {{ids: number[], members: Place[], from: Place, to: Place}} Drag */

/** Speeds a second at full deflection: frame widths or heights (pan), doublings (zoom), degrees. */
export const CAMERA = Object.freeze({ pan_x: 0.5, pan_y: 0.5, zoom: 1, rotate: 45, orbit: 45 });
const STILL = Object.freeze({ pan_x: 0, pan_y: 0, zoom: 0, rotate: 0, orbit: 0 });
const STEP = 0.012; // shares between two corners of a drawn path
const APART = 0.02; // shares of the width between two pins, at least
const COVERED = 0.5; // cells of the grid: points closer than this are at the same place
const HOLE = 0.75; // cells of the grid: a cell is empty if every point is farther from it than this

export class Controls {
  /** @type {Map<Pointer, Drag>} */
  #drags = new Map();
  /** @type {Map<Pointer, {members: Place[], line: Place[]}>} paths that are being drawn */
  #drawing = new Map();
  /** @type {Map<number, Place>} by id */
  #pins = new Map();
  /** @type {Map<number, Place>} points that hold the rest of the scene still, by id; a dragged point stays where it was released */
  #rest = new Map();
  #camera = { ...STILL };
  #nextId = 1;
  #revision = 0;
  #changed = false;
  /** @type {?number} time of the first input event that no snapshot includes */
  #inputAt = null;
  /** @type {DrawnPath[]} */
  paths = [];
  brush = 0.12; // radius, share of the frame's width
  pathSeconds = 2;
  pinRest = true;
  transfer = "";
  columns = 10;
  rows = 6;

  /** @param {number} aspect width over height @param {number} maxPoints */
  constructor(aspect, maxPoints) {
    this.aspect = aspect;
    this.maxPoints = maxPoints;
  }

  /** Notes a change at `now` (ms), so that the next snapshot is sent. @param {?number} now */
  touch(now) {
    this.#changed = true;
    this.#inputAt ??= now;
  }

  /** Makes the next snapshot a complete one for a server that has none, and lets paths run from their beginnings. */
  resend() {
    this.rerunPaths(null);
    this.#rest.clear();
    this.#changed = true;
    this.#inputAt = null;
  }

  /** @param {number} columns */
  setGrid(columns) {
    this.columns = columns;
    this.rows = this.#rowsOf(columns);
    this.#rest.clear();
  }

  /** Returns the number of points of a grid of square cells. @param {number} columns */
  pointsOf(columns) {
    return columns * this.#rowsOf(columns);
  }

  /** @param {number} columns */
  #rowsOf(columns) {
    return Math.max(1, Math.round(columns / this.aspect));
  }

  /** @param {boolean} pinRest @param {number} now */
  setPinRest(pinRest, now) {
    this.pinRest = pinRest;
    this.#rest.clear();
    this.touch(now);
  }

  /** @param {string} transfer id of a motion, "webcam" or "" @param {number} now */
  setTransfer(transfer, now) {
    this.transfer = transfer;
    this.#rest.clear();
    this.touch(now);
  }

  /** Centres of the grid's cells, row after row. @returns {Place[]} */
  get grid() {
    const { rows, columns } = this;
    return Array.from({ length: rows * columns }, (_, i) => [((i % columns) + 0.5) / columns, (Math.floor(i / columns) + 0.5) / rows]);
  }

  /** Returns the distance in shares of the width. @param {Place} a @param {Place} b */
  distance([ax, ay], [bx, by]) {
    return Math.hypot(ax - bx, (ay - by) / this.aspect);
  }

  /**
   * Returns the points under the brush: of those that are held still, or else of the grid; the place itself where there is none.
   * @param {Place} place
   * @returns {[number, Place][]} ids and places
   */
  under(place) {
    /** @type {[number, Place][]} */
    const points = this.#stills ? [...this.#seeded()] : this.grid.map((point) => [this.#nextId++, point]);
    const under = this.brush > 0 ? points.filter(([, point]) => this.distance(point, place) <= this.brush) : [];
    return under.length ? under : [[this.#nextId++, place]];
  }

  /** Takes hold of the points under the brush, and returns their number. @param {Pointer} pointer @param {Place} place @param {number} now */
  grab(pointer, place, now) {
    const under = this.#take(place);
    this.#drags.set(pointer, { ids: under.map(([id]) => id), members: under.map(([, point]) => point), from: place, to: place });
    this.touch(now);
    return under.length;
  }

  /** @param {Place} place */
  #take(place) {
    const under = this.under(place);
    under.forEach(([id]) => this.#rest.delete(id));
    return under;
  }

  /** @param {Pointer} pointer @param {Place} place @param {number} now */
  drag(pointer, place, now) {
    const drag = this.#drags.get(pointer);
    if (!drag || (drag.to[0] === place[0] && drag.to[1] === place[1])) return;
    drag.to = place;
    this.touch(now);
  }

  /** @param {Pointer} pointer @param {number} now */
  release(pointer, now) {
    const drag = this.#drags.get(pointer);
    if (!drag) return;
    this.#drags.delete(pointer);
    if (this.#stills) this.#putBack(placed(drag));
    this.touch(now);
  }

  /** Holds released points where they are, instead of the points they cover, and fills the places they left. @param {[number, Place][]} points */
  #putBack(points) {
    const inside = points.filter(([, place]) => place.every((share) => share >= 0 && share <= 1));
    for (const [id, place] of [...this.#rest]) {
      if (inside.some(([, other]) => this.#apart(place, other) < COVERED)) this.#rest.delete(id);
    }
    inside.forEach(([id, place]) => this.#rest.set(id, place));
    this.#fill();
  }

  /** Adds a point in every empty cell of the grid. */
  #fill() {
    const drags = [...this.#drags.values()];
    const grouped = [...drags.flatMap((drag) => [...drag.members, ...moved(drag)]), ...this.paths.flatMap((path) => path.members)];
    const taken = [...this.#rest.values(), ...this.#pins.values(), ...grouped];
    for (const place of this.grid) {
      if (!taken.some((other) => this.#apart(place, other) < HOLE)) this.#rest.set(this.#nextId++, place);
    }
  }

  /** Returns the cells of the grid between two places, along the axis with more of them. @param {Place} a @param {Place} b */
  #apart([ax, ay], [bx, by]) {
    return Math.max(Math.abs(ax - bx) * this.columns, Math.abs(ay - by) * this.rows);
  }

  /** Pins the points under the brush. Returns the number of new pins. @param {Place} place @param {number} now */
  pin(place, now) {
    const near = (/** @type {Place} */ point) => [...this.#pins.values()].some((pin) => this.distance(pin, point) < APART);
    const fresh = this.under(place).filter(([, point]) => !near(point));
    for (const [id, point] of fresh) {
      this.#rest.delete(id);
      this.#pins.set(id, point);
    }
    if (fresh.length) this.touch(now);
    return fresh.length;
  }

  /** @param {Pointer} pointer @param {Place} place */
  startPath(pointer, place) {
    this.#drawing.set(pointer, { members: this.under(place).map(([, point]) => point), line: [place] });
  }

  /** @param {Pointer} pointer @param {Place} place */
  extendPath(pointer, place) {
    const path = this.#drawing.get(pointer);
    if (path && path.line.length < LIMIT.pathCorners && this.distance(path.line[path.line.length - 1], place) >= STEP) path.line.push(place);
  }

  /**
   * Keeps the path that was drawn, unless it has no length or its points exceed the limit.
   * @param {Pointer} pointer
   * @param {number} now
   * @returns {"none" | "kept" | "short" | "full"}
   */
  finishPath(pointer, now) {
    const path = this.#drawing.get(pointer);
    this.#drawing.delete(pointer);
    if (!path) return "none";
    if (path.line.length < 2) return "short";
    if (this.#members + path.members.length > this.maxPoints) return "full";
    this.paths.push({ id: this.#nextId++, ...path, seconds: this.pathSeconds, revision: null, begun: null });
    for (const [id, place] of [...this.#rest]) {
      if (path.members.some((member) => this.#apart(place, member) < COVERED)) this.#rest.delete(id);
    }
    this.touch(now);
    return "kept";
  }

  get #members() {
    return this.paths.reduce((sum, path) => sum + path.members.length, 0);
  }

  /** Runs all paths from their beginnings. They get new ids, since the server knows the old ones as paths that ran. @param {?number} now */
  rerunPaths(now) {
    this.paths = this.paths.map((path) => ({ ...path, id: this.#nextId++, revision: null, begun: null }));
    if (this.paths.length) this.touch(now);
  }

  /** Notes that the picture follows the controls up to this revision: paths that came with it begin. @param {number} revision @param {number} at seconds of the clip */
  shown(revision, at) {
    for (const path of this.paths) {
      if (path.begun === null && path.revision !== null && path.revision <= revision) path.begun = at;
    }
  }

  /** Removes the pins and paths under the brush. @param {Place} place @param {number} now */
  erase(place, now) {
    const reach = Math.max(this.brush, 0.02);
    const hit = (/** @type {Place} */ point) => this.distance(point, place) <= reach;
    const pins = [...this.#pins].filter(([, pin]) => hit(pin));
    pins.forEach(([id]) => this.#pins.delete(id));
    if (this.#stills) pins.forEach(([id, pin]) => this.#rest.set(id, pin));
    const kept = this.paths.filter((path) => !path.line.some(hit));
    if (!pins.length && kept.length === this.paths.length) return;
    this.paths = kept;
    if (this.#rest.size) this.#fill();
    this.touch(now);
  }

  /** @param {number} now */
  clear(now) {
    [this.#drags, this.#drawing, this.#pins, this.#rest].forEach((map) => map.clear());
    this.paths = [];
    this.touch(now);
  }

  /** @param {Partial<import("./types.js").Speeds>} speeds in the units of CAMERA @param {number} now */
  setCamera(speeds, now) {
    if (Object.entries(speeds).every(([name, speed]) => this.#camera[/** @type {Axis} */ (name)] === speed)) return;
    Object.assign(this.#camera, speeds);
    this.#rest.clear(); // the scene moves away from these points
    this.touch(now);
  }

  get camera() {
    return { ...this.#camera };
  }

  get #cameraMoves() {
    return Object.values(this.#camera).some((speed) => speed !== 0);
  }

  /** Whether everything else is held still: without points to follow, the model lets the scene drift. */
  get #stills() {
    return this.pinRest && !this.transfer && !this.#cameraMoves;
  }

  get dragging() {
    return this.#drags.size > 0;
  }

  /** What the overlay draws. @returns {import("./types.js").View} */
  get view() {
    const green = [...this.#drags.values()].flatMap(moved);
    const drawing = [...this.#drawing.values()].map((path) => ({ ...path, seconds: this.pathSeconds, begun: null }));
    return { green, red: [...this.#pins.values()], rest: this.#restPoints().map(([, place]) => place), paths: [...this.paths, ...drawing] };
  }

  /** Returns the points that hold the rest of the scene still. @returns {[number, Place][]} */
  #restPoints() {
    return this.#stills ? [...this.#seeded()] : [];
  }

  #seeded() {
    if (!this.#rest.size) this.#fill();
    return this.#rest;
  }

  /**
   * Returns the snapshot to send, or null if nothing changed since the last call. Points beyond the limit are left out, those that hold
   * the rest still first.
   * @returns {?import("./types.js").Snapshot}
   */
  snapshot() {
    if (!this.#changed) return null;
    const drags = [...this.#drags.values()];
    /** @type {(pinned: boolean) => (point: [number, Place]) => import("./types.js").Point} */
    const point = (pinned) => ([id, [x, y]]) => ({ id, x, y, pinned });
    const dragged = drags.flatMap(placed);
    const points = [...dragged.map(point(false)), ...[...this.#pins, ...this.#restPoints()].map(point(true))].slice(0, this.maxPoints - this.#members);
    const snapshot = {
      revision: ++this.#revision, inputAt: this.#inputAt, points,
      paths: this.paths.map(({ id, members, line, seconds }) => ({ id, members, line, seconds })),
      camera: this.#cameraMoves ? { ...this.#camera } : null, transfer: this.transfer,
    };
    this.#changed = false;
    this.#inputAt = null;
    this.paths.forEach((path) => (path.revision ??= snapshot.revision));
    return snapshot;
  }
}

/** Returns where the points of a drag are now. @param {Drag} drag @returns {Place[]} */
function moved({ members, from, to }) {
  return members.map(([x, y]) => [x + to[0] - from[0], y + to[1] - from[1]]);
}

/** Returns the points of a drag with their ids. @param {Drag} drag @returns {[number, Place][]} */
function placed(drag) {
  return moved(drag).map((place, i) => [drag.ids[i], place]);
}

/** Returns the place on a line after a share of its length. @param {Place[]} line @param {number} share @returns {Place} */
export function along(line, share) {
  const lengths = line.slice(1).map(([x, y], i) => Math.hypot(x - line[i][0], y - line[i][1]));
  let left = Math.min(Math.max(share, 0), 1) * lengths.reduce((sum, length) => sum + length, 0);
  for (let i = 0; i < lengths.length; i++) {
    if (left <= lengths[i] && lengths[i] > 0) {
      const part = left / lengths[i];
      return [line[i][0] + part * (line[i + 1][0] - line[i][0]), line[i][1] + part * (line[i + 1][1] - line[i][1])];
    }
    left -= lengths[i];
  }
  return line[line.length - 1];
}
