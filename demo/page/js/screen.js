/** Decodes the frames of a chunk, and shows them on a canvas of the clip's size. */

import { rgbToRgba, splitChunk } from "./protocol.js";
import { context2d } from "./ui.js";

/**
 * @param {import("./types.js").ChunkHeader} header
 * @param {Uint8Array<ArrayBuffer>} payload
 * @param {"rgb8" | "jpeg"} encoding
 * @returns {Promise<import("./types.js").Chunk>}
 */
export async function decodeChunk(header, payload, encoding) {
  const { frames, tracks } = splitChunk(header, payload);
  const arrived = performance.now(); // the queue corrects it when the chunk is decoded
  if (encoding === "rgb8") return { header, frames: frames.map((bytes) => new ImageData(rgbToRgba(bytes), header.width, header.height)), tracks, arrived };
  const images = frames.map((bytes) => createImageBitmap(new Blob([bytes], { type: "image/jpeg" })));
  return { header, frames: await Promise.all(images), tracks, arrived };
}

export class Screen {
  #context;

  /** @param {HTMLCanvasElement} canvas @param {number} width @param {number} height of the clip, pixels */
  constructor(canvas, width, height) {
    Object.assign(canvas, { width, height });
    this.canvas = canvas;
    this.#context = context2d(canvas, { alpha: false });
  }

  /** @param {ImageData | ImageBitmap} frame */
  show(frame) {
    if (frame instanceof ImageData) {
      this.#context.putImageData(frame, 0, 0);
      return;
    }
    this.#context.drawImage(frame, 0, 0);
    frame.close();
  }

  /** Shows the picture that a stream starts with. @param {HTMLImageElement} image */
  showStill(image) {
    this.#context.imageSmoothingQuality = "high";
    this.#context.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
  }
}
