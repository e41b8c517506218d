/** The gallery: saved recordings to watch, to download and to replay. */

import { get, hideToken } from "./api.js";
import { $, make, note, reason } from "./ui.js";

const FILES = Object.freeze({ "video.mp4": "Video", "drawn.mp4": "Video with tracks", "tracks.npz": "Tracks", "first.png": "First frame", "recording.json": "Settings" });

const when = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** @param {string} name @param {string} value */
function fact(name, value) {
  return make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }));
}

/** @param {import("./types.js").Recording} recording */
function card(recording) {
  const { id, title, prompt, seed, seconds, frames, saved, student, digest, preset, folder, ended } = recording;
  const place = `api/recordings/${encodeURIComponent(id)}`;
  const video = make("video", { src: `${place}/video.mp4`, poster: `${place}/first.png`, controls: true, loop: true, preload: "metadata", playsInline: true });
  video.setAttribute("aria-label", `Recording ${title || id}`);
  const facts = make("dl", {}, fact("Length", `${seconds.toFixed(1)} s, ${frames} frames`), fact("Seed", String(seed)), fact("Student", student), fact("Weights", digest.slice(0, 12)));
  const links = Object.entries(FILES).map(([file, text]) => make("a", { href: `${place}/${file}`, download: `${id}-${file}`, textContent: text }));
  const article = make(
    "article", { className: "recording", id },
    video,
    make("div", { className: "about" },
      make("h2", { textContent: title || "Untitled" }),
      make("p", { className: "quiet", textContent: when.format(new Date(saved)) }),
      make("p", { textContent: prompt || "No prompt." }),
      ...(ended ? [make("p", { className: "quiet", textContent: ended })] : []),
      facts, command(`make eval PRESET=${preset} ARGS="eval.replay=${folder}"`), make("p", { className: "links" }, ...links)),
  );
  article.tabIndex = -1;
  return article;
}

/** Shows the command that replays a recording, with a button that copies it. @param {string} text */
function command(text) {
  const copy = make("button", { type: "button", className: "small", textContent: "Copy" });
  copy.setAttribute("aria-label", "Copy the command that replays this recording");
  copy.onclick = async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  };
  return make("p", { className: "command" }, make("code", { textContent: text }), copy);
}

async function begin() {
  hideToken();
  /** @type {import("./types.js").Recording[]} */
  const recordings = await get("recordings");
  $("recordings").replaceChildren(...recordings.map(card));
  $("empty").hidden = recordings.length > 0;
  $("count").textContent = recordings.length === 1 ? "1 recording" : `${recordings.length} recordings`;
  const wanted = $(decodeURIComponent(location.hash.slice(1)));
  wanted?.scrollIntoView();
  wanted?.focus({ preventScroll: true });
}

begin().catch((error) => note(`The recordings could not be listed: ${reason(error)} Check that the server is running, then reload the page.`, { bad: true }));
