/** Small helpers for the page's parts, and its messages. */

/** @param {string} id @returns {HTMLElement} */
export const $ = (id) => document.getElementById(id);

/** @param {string} tag @param {object} properties @param {(Node | string)[]} children */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Says something to who cannot see. */
export function announce(text) {
  $("announce").textContent = text;
}

const LONGEST = 6000; // ms that a message which is no error stays

/** A message at the edge of the page. An error stays until it is dismissed; the same one is not shown twice. */
export function note(text, { bad = false, link = null } = {}) {
  const shown = [...$("notes").children].find((other) => other.dataset.text === text);
  if (shown) shown.remove();
  const close = make("button", { type: "button", textContent: "Dismiss" });
  const content = make("p", {}, text, ...(link ? [" ", make("a", link)] : []));
  const box = make("div", { className: bad ? "note bad" : "note" }, content, close);
  box.dataset.text = text;
  box.setAttribute("role", bad ? "alert" : "status");
  close.onclick = () => box.remove();
  $("notes").append(box);
  if (!bad) setTimeout(() => box.remove(), LONGEST);
}

/** Whether what a user types goes into this element. */
export function takesText(element) {
  return element.matches?.("textarea, select, input:not([type=range], [type=checkbox], [type=radio], [type=file])") ?? false;
}

/** Accepts files dropped on a file field's label, beside those picked; the same file can be picked again. */
export function onFile(input, take) {
  input.onchange = () => {
    const [file] = input.files;
    if (file) take(file);
    input.value = "";
  };
  const label = input.closest("label");
  label.ondragover = () => label.classList.add("over");
  label.ondragleave = label.ondrop = () => label.classList.remove("over");
}
