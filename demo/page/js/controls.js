/**
 * What the hands ask for: drags (green), pins (red), paths (blue), camera, transferred motion; and the snapshot of it that is sent.
 * Positions are shares of the frame, 0 to 1. Knows no DOM.
 */

/** Doublings, degrees, and frame widths or heights a second at full deflection. */
export const CAMERA = Object.freeze({ pan_x: 0.5, pan_y: 0.5, zoom: 1, rotate: 45, orbit: 45 });
const STILL = Object.freeze({ pan_x: 0, pan_y: 0, zoom: 0, rotate: 0, orbit: 0 });
const STEP = 0.012; // shares between two corners of a drawn path
const APART = 0.02; // shares of the width between two pins, at least
const COVERED = 0.5; // cells of the grid: what lies so close is the same place
const HOLE = 0.75; // cells of the grid: a place of it from which any point is so far is empty
const CORNERS = 2000; // of one path, at most

export class Controls {
  #drags = new Map(); // pointer -> {ids, members, from, to}
  #drawing = new Map(); // pointer -> a path that is being drawn
  #pins = new Map(); // id -> [x, y]
  #rest = new Map(); // id -> [x, y]: what nobody holds. It sticks to the scene: what is moved stays where it is let go
  #camera = { ...STILL };
  #nextId = 1;
  #revision = 0;
  #changed = false;
  #inputAt = null; // of the first input event that no snapshot has yet
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

  /** Something changed at `now` (ms): the next snapshot is one. */
  touch(now) {
    this.#changed = true;
    this.#inputAt ??= now;
  }

  /** Who hears them knows nothing yet: the next snapshot is one, without an input event. Paths begin at their beginnings. */
  restate() {
    this.rerunPaths(null);
    this.#rest.clear();
    this.#changed = true;
    this.#inputAt = null;
  }

  setGrid(columns) {
    this.columns = columns;
    this.rows = this.#rowsOf(columns);
    this.#rest.clear();
  }

  /** Of a grid of square cells with so many columns. */
  pointsOf(columns) {
    return columns * this.#rowsOf(columns);
  }

  #rowsOf(columns) {
    return Math.max(1, Math.round(columns / this.aspect));
  }

  setPinRest(pinRest, now) {
    this.pinRest = pinRest;
    this.#rest.clear();
    this.touch(now);
  }

  setTransfer(transfer, now) {
    this.transfer = transfer;
    this.#rest.clear();
    this.touch(now);
  }

  /** Centres of the grid's cells, row after row. */
  get grid() {
    const { rows, columns } = this;
    return Array.from({ length: rows * columns }, (_, i) => [((i % columns) + 0.5) / columns, (Math.floor(i / columns) + 0.5) / rows]);
  }

  distance([ax, ay], [bx, by]) {
    return Math.hypot(ax - bx, (ay - by) / this.aspect);
  }

  /** Points under the brush, [id, place] each: of those that are held still, or else of the grid; the place itself where there is none. */
  under(place) {
    const points = this.#stills ? [...this.#seeded()] : this.grid.map((point) => [this.#nextId++, point]);
    const under = this.brush > 0 ? points.filter(([, point]) => this.distance(point, place) <= this.brush) : [];
    return under.length ? under : [[this.#nextId++, place]];
  }

  grab(pointer, place, now) {
    const under = this.#take(place);
    this.#drags.set(pointer, { ids: under.map(([id]) => id), members: under.map(([, point]) => point), from: place, to: place });
    this.touch(now);
    return under.length;
  }

  #take(place) {
    const under = this.under(place);
    under.forEach(([id]) => this.#rest.delete(id));
    return under;
  }

  drag(pointer, place, now) {
    const drag = this.#drags.get(pointer);
    if (!drag || (drag.to[0] === place[0] && drag.to[1] === place[1])) return;
    drag.to = place;
    this.touch(now);
  }

  release(pointer, now) {
    const drag = this.#drags.get(pointer);
    if (!this.#drags.delete(pointer)) return;
    if (this.#stills) this.#putBack(moved(drag).map((place, i) => [drag.ids[i], place]));
    this.touch(now);
  }

  /** What was let go is held where it is, in place of what it covers; where it came from new points are. */
  #putBack(points) {
    const inside = points.filter(([, place]) => place.every((share) => share >= 0 && share <= 1));
    for (const [id, place] of [...this.#rest]) {
      if (inside.some(([, other]) => this.#apart(place, other) < COVERED)) this.#rest.delete(id);
    }
    inside.forEach(([id, place]) => this.#rest.set(id, place));
    this.#fill();
  }

  #fill() {
    const taken = [...this.#rest.values(), ...this.#pins.values(), ...this.#drags.values(), ...this.paths]
      .flatMap((one) => one.members ? (one.to ? [...one.members, ...moved(one)] : one.members) : [one]);
    for (const place of this.grid) {
      if (!taken.some((other) => this.#apart(place, other) < HOLE)) this.#rest.set(this.#nextId++, place);
    }
  }

  /** Cells of the grid between two places, along the axis on which it is more. */
  #apart([ax, ay], [bx, by]) {
    return Math.max(Math.abs(ax - bx) * this.columns, Math.abs(ay - by) * this.rows);
  }

  /** Pins what is under the brush. Returns how many pins came. */
  pin(place, now) {
    const near = (point) => [...this.#pins.values()].some((pin) => this.distance(pin, point) < APART);
    const fresh = this.under(place).filter(([, point]) => !near(point));
    for (const [id, point] of fresh) {
      this.#rest.delete(id);
      this.#pins.set(id, point);
    }
    if (fresh.length) this.touch(now);
    return fresh.length;
  }

  startPath(pointer, place) {
    this.#drawing.set(pointer, { members: this.under(place).map(([, point]) => point), line: [place] });
  }

  extendPath(pointer, place) {
    const path = this.#drawing.get(pointer);
    if (path && path.line.length < CORNERS && this.distance(path.line[path.line.length - 1], place) >= STEP) path.line.push(place);
  }

  /**
   * Keeps the path that was drawn, unless it has no length or its group does not fit below the limit of points.
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

  /** All paths from their beginnings: a path that is known is one that runs or ran, hence new names. */
  rerunPaths(now) {
    this.paths = this.paths.map((path) => ({ ...path, id: this.#nextId++, revision: null, begun: null }));
    if (this.paths.length) this.touch(now);
  }

  /** The picture shows what it was asked for up to this revision: paths that came with it begin. at: seconds of the clip. */
  shown(revision, at) {
    for (const path of this.paths) {
      if (path.begun === null && path.revision !== null && path.revision <= revision) path.begun = at;
    }
  }

  /** Takes away the pins and paths under the brush. */
  erase(place, now) {
    const reach = Math.max(this.brush, 0.02);
    const hit = (point) => this.distance(point, place) <= reach;
    const pins = [...this.#pins].filter(([, pin]) => hit(pin));
    pins.forEach(([id]) => this.#pins.delete(id));
    if (this.#stills) pins.forEach(([id, pin]) => this.#rest.set(id, pin));
    const kept = this.paths.filter((path) => !path.line.some(hit));
    if (!pins.length && kept.length === this.paths.length) return;
    this.paths = kept;
    if (this.#rest.size) this.#fill();
    this.touch(now);
  }

  clear(now) {
    [this.#drags, this.#drawing, this.#pins, this.#rest].forEach((map) => map.clear());
    this.paths = [];
    this.touch(now);
  }

  /** @param {object} speeds some of CAMERA's, in its units */
  setCamera(speeds, now) {
    if (Object.entries(speeds).every(([name, speed]) => this.#camera[name] === speed)) return;
    Object.assign(this.#camera, speeds);
    this.#rest.clear(); // the scene moves away under it
    this.touch(now);
  }

  get camera() {
    return { ...this.#camera };
  }

  get #turning() {
    return Object.values(this.#camera).some((speed) => speed !== 0);
  }

  /** Whether what nobody moves is held still: a student with nothing to follow drifts. */
  get #stills() {
    return this.pinRest && !this.transfer && !this.#turning;
  }

  get dragging() {
    return this.#drags.size > 0;
  }

  /** What the overlay draws. */
  get view() {
    const green = [...this.#drags.values()].flatMap(moved);
    const drawing = [...this.#drawing.values()].map((path) => ({ ...path, seconds: this.pathSeconds, begun: null }));
    return { green, red: [...this.#pins.values()], rest: this.#restPoints().map(([, place]) => place), paths: [...this.paths, ...drawing] };
  }

  /** Points that nobody has, which are held still. */
  #restPoints() {
    return this.#stills ? [...this.#seeded()] : [];
  }

  #seeded() {
    if (!this.#rest.size) this.#fill();
    return this.#rest;
  }

  /**
   * What is to be sent now: null if nothing changed since the last call. Points beyond the limit are left out, those of the rest first.
   * @returns {?{revision: number, inputAt: ?number, points: object[], paths: object[], camera: ?object, transfer: string}}
   */
  snapshot() {
    if (!this.#changed) return null;
    const drags = [...this.#drags.values()];
    const point = (pinned) => ([id, [x, y]]) => ({ id, x, y, pinned });
    const dragged = drags.flatMap((drag) => moved(drag).map((place, i) => [drag.ids[i], place]));
    const points = [...dragged.map(point(false)), ...[...this.#pins, ...this.#restPoints()].map(point(true))].slice(0, this.maxPoints - this.#members);
    const snapshot = {
      revision: ++this.#revision, inputAt: this.#inputAt, points,
      paths: this.paths.map(({ id, members, line, seconds }) => ({ id, members, line, seconds })),
      camera: this.#turning ? { ...this.#camera } : null, transfer: this.transfer,
    };
    this.#changed = false;
    this.#inputAt = null;
    this.paths.forEach((path) => (path.revision ??= snapshot.revision));
    return snapshot;
  }
}

function moved({ members, from, to }) {
  return members.map(([x, y]) => [x + to[0] - from[0], y + to[1] - from[1]]);
}

/** The place on a line after a share of its length. */
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
