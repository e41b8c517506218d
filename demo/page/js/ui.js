/** Helpers for the page's elements, and its messages. */

/** @param {string} id */
export const $ = (id) => /** @type {HTMLElement} */ (document.getElementById(id));

/** @param {string} id */
export const input = (id) => /** @type {HTMLInputElement} */ ($(id));

/** @param {string} id */
export const button = (id) => /** @type {HTMLButtonElement} */ ($(id));

/** @param {string} id */
export const canvas = (id) => /** @type {HTMLCanvasElement} */ ($(id));

/**
 * @param {HTMLCanvasElement} element
 * @param {CanvasRenderingContext2DSettings=} settings
 */
export const context2d = (element, settings) => /** @type {CanvasRenderingContext2D} */ (element.getContext("2d", settings));

/** @param {unknown} error */
export const reason = (error) => (error instanceof Error ? error.message : String(error));

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {object} properties
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Reads a text to users of a screen reader. @param {string} text */
export function announce(text) {
  $("announce").textContent = text;
}

const NOTE_MS = 6000; // for which a message that is no error stays

/**
 * Shows a message at the edge of the page. An error stays until it is dismissed; a text is not shown twice.
 * @param {string} text
 * @param {{bad?: boolean, link?: ?object}} options
 */
export function note(text, { bad = false, link = null } = {}) {
  const shown = Array.from($("notes").children).find((other) => other instanceof HTMLElement && other.dataset.text === text);
  if (shown) shown.remove();
  const close = make("button", { type: "button", textContent: "Dismiss" });
  const content = make("p", {}, text, ...(link ? [" ", make("a", link)] : []));
  const box = make("div", { className: bad ? "note bad" : "note" }, content, close);
  box.dataset.text = text;
  box.setAttribute("role", bad ? "alert" : "status");
  close.onclick = () => box.remove();
  $("notes").append(box);
  if (!bad) setTimeout(() => box.remove(), NOTE_MS);
}

/** Tells whether an element takes the text that a user types. @param {Element} element */
export function takesText(element) {
  return element.matches("textarea, select, input:not([type=range], [type=checkbox], [type=radio], [type=file])");
}

/**
 * Calls `take` with a file that was picked or dropped on a file field. The same file can be picked again.
 * @param {HTMLInputElement} field
 * @param {(file: File) => void} take
 */
export function onFile(field, take) {
  field.onchange = () => {
    const file = field.files?.[0];
    if (file) take(file);
    field.value = "";
  };
  const label = /** @type {HTMLLabelElement} */ (field.closest("label"));
  label.ondragover = () => label.classList.add("over");
  label.ondragleave = label.ondrop = () => label.classList.remove("over");
}
