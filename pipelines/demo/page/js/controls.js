/**
 * What the hands ask for: drags (green), pins (red), paths (blue), camera, transferred motion; and the snapshot of it that is sent.
 * Positions are shares of the frame, 0 to 1. Knows no DOM.
 */

/** Doublings, degrees, and frame widths or heights a second at full deflection. */
export const CAMERA = Object.freeze({ pan_x: 0.5, pan_y: 0.5, zoom: 1, rotate: 45, orbit: 45 });
const STILL = Object.freeze({ pan_x: 0, pan_y: 0, zoom: 0, rotate: 0, orbit: 0 });
const STEP = 0.012; // shares between two corners of a drawn path
const CORNERS = 2000; // of one path, at most

export class Controls {
  #drags = new Map(); // pointer -> {ids, members, from, to}
  #drawing = new Map(); // pointer -> a path that is being drawn
  #pins = new Map(); // id -> [x, y]
  #rest = new Map(); // index in the grid -> id, while everything else is pinned
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

  /** The grid's points under the brush; the place itself where there is none. */
  under(place) {
    const under = this.brush > 0 ? this.grid.filter((point) => this.distance(point, place) <= this.brush) : [];
    return under.length ? under : [place];
  }

  grab(pointer, place, now) {
    const members = this.under(place);
    this.#drags.set(pointer, { ids: members.map(() => this.#nextId++), members, from: place, to: place });
    this.touch(now);
    return members.length;
  }

  drag(pointer, place, now) {
    const drag = this.#drags.get(pointer);
    if (!drag || (drag.to[0] === place[0] && drag.to[1] === place[1])) return;
    drag.to = place;
    this.touch(now);
  }

  release(pointer, now) {
    if (!this.#drags.delete(pointer)) return;
    if (!this.#holding) this.#rest.clear();
    this.touch(now);
  }

  /** Pins what is under the brush. Returns how many pins came. */
  pin(place, now) {
    const near = (point) => [...this.#pins.values()].some((pin) => this.distance(pin, point) < 1e-3);
    const fresh = this.under(place).filter((point) => !near(point));
    fresh.forEach((point) => this.#pins.set(this.#nextId++, point));
    if (fresh.length) this.touch(now);
    return fresh.length;
  }

  startPath(pointer, place) {
    this.#drawing.set(pointer, { members: this.under(place), line: [place] });
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
    const kept = this.paths.filter((path) => !path.line.some(hit));
    if (!pins.length && kept.length === this.paths.length) return;
    this.paths = kept;
    if (!this.#holding) this.#rest.clear();
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
    this.touch(now);
  }

  get camera() {
    return { ...this.#camera };
  }

  get #turning() {
    return Object.values(this.#camera).some((speed) => speed !== 0);
  }

  get #holding() {
    return this.#drags.size > 0 || this.paths.length > 0;
  }

  get dragging() {
    return this.#drags.size > 0;
  }

  /** What the overlay draws. */
  get view() {
    const green = [...this.#drags.values()].flatMap(moved);
    const drawing = [...this.#drawing.values()].map((path) => ({ ...path, seconds: this.pathSeconds, begun: null }));
    return { green, red: [...this.#pins.values()], rest: this.#restPoints(green).map(({ place }) => place), paths: [...this.paths, ...drawing] };
  }

  /** The grid's points that nothing moves or covers, while something is held: pinned too, so that the rest of the picture stays. */
  #restPoints(green) {
    if (!this.pinRest || !this.#holding || this.transfer || this.#turning) return [];
    const reach = 0.75 / this.columns;
    const taken = [...green, ...[...this.#drags.values()].flatMap((drag) => drag.members), ...this.paths.flatMap(swept), ...this.#pins.values()];
    return this.grid.map((place, index) => ({ place, index })).filter(({ place }) => !taken.some((other) => this.distance(other, place) < reach));
  }

  #restId(index) {
    if (!this.#rest.has(index)) this.#rest.set(index, this.#nextId++);
    return this.#rest.get(index);
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
    const rest = this.#restPoints(dragged.map(([, place]) => place)).map(({ place, index }) => [this.#restId(index), place]);
    const points = [...dragged.map(point(false)), ...[...this.#pins].map(point(true)), ...rest.map(point(true))].slice(0, this.maxPoints - this.#members);
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

/** Where a path's members come by, sampled. */
function swept({ members, line }) {
  const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => along(line, share));
  return stops.flatMap((to) => moved({ members, from: line[0], to }));
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
