// Building blocks of the page. Data reaches the page as text nodes and attributes only, never as markup.
const FOCUSABLE = new Set(["a", "button", "canvas", "input", "select", "summary", "textarea"]);
let lastId = 0;

function freshId(stem) {
  return `fmlab-${stem}-${++lastId}-${Math.random().toString(36).slice(2, 8)}`;
}

// h("button", {class: "fm-x", onclick: f}, "text", child): strings among the children become text nodes.
function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  // JupyterLab runs its one-letter commands on any focused element that does not carry this attribute itself.
  if (FOCUSABLE.has(tag) || "tabindex" in attributes) node.setAttribute("data-lm-suppress-shortcuts", "true");
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// What is typed here is not for the notebook around it, which would take Enter, arrows and letters for its own.
function keepKeys(root) {
  root.addEventListener("keydown", (event) => event.stopPropagation());
}

function clamp(value, low, high) {
  return Math.max(low, Math.min(high, value));
}

function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

// A token as a reader can see it: JSON's escapes for what is invisible, quotation marks around it.
function quoted(token) {
  const shown = JSON.stringify(token).slice(1, -1).replace(/\\"/g, '"');
  return `“${shown}”`;
}

// Calls `changed` when the computed value of a colour variable changes: a theme switch, in Lab or of the system.
// The style sheet gives the probe a 1 ms transition, so the event comes after the new theme is really loaded.
function watchTheme(root, changed) {
  const probe = h("span", { class: "fm-probe", "aria-hidden": "true" });
  const soon = () => requestAnimationFrame(changed);
  probe.addEventListener("transitionend", soon);
  probe.addEventListener("transitioncancel", soon);  // Lab swaps style sheets under a running transition
  root.append(probe);
}

// Colours of the style sheet, --fm-<name>, as [red, green, blue].
class Palette {
  constructor(root, names) {
    this.root = root;
    this.names = names;
    this.written = {};
    this.colours = Object.fromEntries(names.map((name) => [name, [128, 128, 128]]));
    this.context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  }

  read() {
    const style = getComputedStyle(this.root);
    for (const name of this.names) {
      const written = style.getPropertyValue(`--fm-${name}`).trim();
      if (written === "" || written === this.written[name]) continue;  // empty: not in the page yet
      this.written[name] = written;
      this.context.fillStyle = written;
      this.context.fillRect(0, 0, 1, 1);
      this.colours[name] = Array.from(this.context.getImageData(0, 0, 1, 1).data.slice(0, 3));
    }
    return this.colours;
  }
}
