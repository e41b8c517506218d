/**
 * Types that several modules share. It holds no code and is not loaded; it is read by the type checker.
 *
 * @typedef {[number, number]} Place x and y, shares of the frame
 * @typedef {{id: number, x: number, y: number, pinned: boolean}} Point
 * @typedef {{id: number, members: Place[], line: Place[], seconds: number}} SentPath
 * @typedef {SentPath & {revision: ?number, begun: ?number}} DrawnPath revision: of the snapshot that sent it first; begun: seconds of the clip
 * @typedef {"pan_x" | "pan_y" | "zoom" | "rotate" | "orbit"} Axis
 * @typedef {Record<Axis, number>} Speeds of the camera
 * @typedef {{revision: number, points: Point[], paths: SentPath[], camera: ?Speeds, transfer: string}} SentControls
 * @typedef {SentControls & {inputAt: ?number}} Snapshot inputAt: time of the first input event that it includes
 * @typedef {{green: Place[], red: Place[], rest: Place[], paths: Omit<DrawnPath, "id" | "revision">[]}} View
 * @typedef {"drag" | "pin" | "path" | "erase"} Tool
 *
 * @typedef {{name: string, header: any, payload: Uint8Array<ArrayBuffer>}} Message
 * @typedef {object} ChunkHeader
 * @property {number} seq
 * @property {number} chunk
 * @property {number} revision
 * @property {number} dit_ms
 * @property {number} decode_ms
 * @property {number} frames
 * @property {number} height
 * @property {number} width
 * @property {number[]} lengths
 * @property {number} cache_bytes
 * @property {number} points
 * @typedef {{header: ChunkHeader, frames: (ImageData | ImageBitmap)[], tracks: Float32Array[], arrived: number}} Chunk
 * @typedef {{chunk: Chunk, index: number, begun: Chunk[]}} Due a frame to show, and the chunks that begin with it
 *
 * @typedef {{picture: string, prompt: string, seed: number, depth: string, smoothing: {smooth_seconds: number, max_speed: number, release: string}}} StartSettings
 * @typedef {{id: string, frames: number, points: number}} MotionEntry
 * @typedef {object} About
 * @property {string} preset
 * @property {string} student
 * @property {string} device
 * @property {number} height
 * @property {number} width
 * @property {number} fps
 * @property {number} max_points
 * @property {[number, number]} grid rows and columns
 * @property {MotionEntry[]} motions
 * @typedef {{id: string, title: string, prompt?: string, width: number, height: number, crop?: [number, number, number, number]}} PictureEntry
 * @typedef {object} Recording
 * @property {string} id
 * @property {string} title
 * @property {string} prompt
 * @property {number} seed
 * @property {number} seconds
 * @property {number} frames
 * @property {string} saved
 * @property {string} student
 * @property {string} digest
 * @property {string} preset
 * @property {string} folder
 * @property {string} ended
 */
export {};
