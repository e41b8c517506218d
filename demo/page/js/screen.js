/** The picture: frames of a chunk as what a canvas takes, and the canvas they are shown on, at the clip's own size. */

import { rgbToRgba, splitChunk } from "./protocol.js";

/**
 * @param {object} header of a chunk @param {Uint8Array} payload @param {"rgb8" | "jpeg"} encoding
 * @returns {Promise<{header: object, frames: (ImageData | ImageBitmap)[], tracks: Float32Array[]}>}
 */
export async function decodeChunk(header, payload, encoding) {
  const { frames, tracks } = splitChunk(header, payload);
  if (encoding === "rgb8") return { header, frames: frames.map((bytes) => new ImageData(rgbToRgba(bytes), header.width, header.height)), tracks };
  const images = frames.map((bytes) => createImageBitmap(new Blob([bytes], { type: "image/jpeg" })));
  return { header, frames: await Promise.all(images), tracks };
}

export class Screen {
  #context;

  /** @param {HTMLCanvasElement} canvas @param {number} width @param {number} height of the clip, pixels */
  constructor(canvas, width, height) {
    Object.assign(canvas, { width, height });
    this.canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
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

  /** The picture that a stream would begin with. @param {HTMLImageElement} image */
  showStill(image) {
    this.#context.imageSmoothingQuality = "high";
    this.#context.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
  }
}
