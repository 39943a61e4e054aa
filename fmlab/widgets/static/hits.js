// Hit ratios over capacity: all curves are here, so sliders redraw without asking anybody.
const DASH = { solid: "", dash: "9 5", dot: "2 4", dashdot: "9 4 2 4", longdash: "15 6", longdashdot: "15 5 2 5" };
const WIDE = 720, TALL = 400, SIDES = { left: 58, right: 16, top: 12, bottom: 48 };

// Belady has no look of its own: it is the thick dotted line in the colour of the text.
function stroke(look) {
  return look ? { stroke: look.colour, "stroke-dasharray": DASH[look.dash], "stroke-width": 2.2, fill: "none" }
    : { stroke: "currentColor", "stroke-dasharray": DASH.dot, "stroke-width": 3.2, fill: "none" };
}

const percent = (value) => (value === null ? "–" : `${(value * 100).toFixed(1)}%`);
const compact = new Intl.NumberFormat("en", { notation: "compact" });

class HitView {
  // changed({block_tokens} or {capacity_tokens} or {ratio}) tells what the reader chose.
  constructor(root, curves, changed) {
    Object.assign(this, { curves, changed, block: null, capacity: null, ratio: null, paints: 0 });
    this.blocks = this.slider("Block size", "fm-block-size", curves.blocks, (at) => this.choose("block_tokens", curves.blocks[at]));
    this.capacities = this.slider("Capacity", "fm-capacity", curves.capacities,
      (at) => this.choose("capacity_tokens", curves.capacities[at]));
    this.select = h("select", { class: "fm-ratio", "aria-label": "Hit ratio", onchange: () => this.choose("ratio", this.select.value) },
      ...Object.entries(curves.names).map(([value, words]) => h("option", { value }, `by ${value}: ${words}`)));
    const controls = h("div", { class: "fm-controls fm-hit-controls" }, this.capacities.field, this.blocks.field,
      h("label", { class: "fm-field" }, h("span", { class: "fm-label" }, "Ratio"), this.select));
    this.axes = s("g", { class: "fm-hit-axes" });
    this.lines = s("g");
    this.marks = s("g", { class: "fm-hit-marks" });
    this.chart = s("svg", { class: "fm-hit-chart", viewBox: `0 0 ${WIDE} ${TALL}`, role: "img" }, this.axes, this.lines, this.marks);
    this.chart.addEventListener("pointerdown", (event) => this.press(event));
    this.chart.addEventListener("pointermove", (event) => event.buttons & 1 && this.press(event));
    this.caption = h("caption", { "aria-live": "polite" });
    this.head = h("thead");
    this.body = h("tbody");
    const table = h("div", { class: "fm-figures fm-hit-table" }, h("table", {}, this.caption, this.head, this.body));
    this.element = h("div", { class: "fm-hits" }, controls, h("div", { class: "fm-hit-stage" }, this.chart, table));
    root.append(this.element);
  }

  slider(name, kind, values, moved) {
    const input = h("input", { type: "range", class: kind, min: "0", max: String(values.length - 1), step: "1", "aria-label": name,
      oninput: () => moved(Number(input.value)) });
    const shown = h("output", { class: "fm-value" });
    return { input, shown, field: h("label", { class: "fm-field" }, h("span", { class: "fm-label" }, name), input, shown) };
  }

  choose(name, value) {
    this.show({ [name]: value });
    this.changed({ [name]: value });
  }

  // What is shown already is not drawn again: a choice comes back from the model that was told of it.
  show({ block_tokens, capacity_tokens, ratio }) {
    const { block, capacity, ratio: drawn } = this, { blocks, capacities } = this.curves;
    if (block_tokens !== undefined) this.block = blocks.indexOf(block_tokens);
    if (capacity_tokens !== undefined) this.capacity = capacities.indexOf(capacity_tokens);
    if (ratio !== undefined) this.ratio = ratio;
    const lines = this.block !== block || this.ratio !== drawn;
    if (!lines && this.capacity === capacity) return;
    if (lines) this.draw();
    this.mark();
    this.element.dataset.paints = ++this.paints;
  }

  // A single capacity stands in the middle.
  x(tokens) {
    const { capacities } = this.curves, low = Math.log(capacities[0]), high = Math.log(capacities.at(-1));
    const share = high > low ? (Math.log(tokens) - low) / (high - low) : 0.5;
    return SIDES.left + share * (WIDE - SIDES.left - SIDES.right);
  }

  y(value) {
    return TALL - SIDES.bottom - (value / this.top) * (TALL - SIDES.top - SIDES.bottom);
  }

  draw() {
    const { curves, ratio } = this, values = curves.ratios[ratio];
    // One axis for all block sizes, or moving that slider would move the ground under the lines.
    this.top = Math.max(0.1, Math.ceil(Math.max(...values.flat(2)) * 10 - 1e-9) / 10);
    this.axes.replaceChildren(...this.grid());
    this.lines.replaceChildren(...values[this.block].map((line, k) => {
      const points = line.map((value, c) => (value === null ? null : `${this.x(curves.capacities[c]).toFixed(1)},${this.y(value).toFixed(1)}`));
      return s("polyline", { points: points.filter(Boolean).join(" "), "data-policy": curves.policies[k], ...stroke(curves.looks[k]) },
        s("title", {}, curves.policies[k]));
    }));
    this.chart.setAttribute("aria-label", `Hit ratio by ${ratio} over the capacity from ${curves.capacities[0].toLocaleString("en")} to ` +
      `${curves.capacities.at(-1).toLocaleString("en")} tokens, blocks of ${curves.blocks[this.block]} tokens, ` +
      `${curves.policies.length} policies; the table has the figures at the chosen capacity.`);
  }

  *grid() {
    const { capacities } = this.curves, bottom = TALL - SIDES.bottom, right = WIDE - SIDES.right;
    const every = this.top > 0.5 ? 0.2 : 0.1;
    for (let value = 0; value <= this.top + 1e-9; value += every) {
      yield s("line", { x1: SIDES.left, x2: right, y1: this.y(value), y2: this.y(value) });
      yield s("text", { x: SIDES.left - 8, y: this.y(value) + 4, "text-anchor": "end" }, `${Math.round(value * 100)}%`);
    }
    const decades = Math.log10(capacities.at(-1) / capacities[0]), steps = decades > 4 ? [1] : [1, 2, 5];
    for (let power = 1; power <= capacities.at(-1); power *= 10) {
      for (const tokens of steps.map((step) => step * power)) {
        if (tokens < capacities[0] || tokens > capacities.at(-1)) continue;
        yield s("line", { x1: this.x(tokens), x2: this.x(tokens), y1: bottom, y2: bottom + 5 });
        yield s("text", { x: this.x(tokens), y: bottom + 19, "text-anchor": "middle" }, compact.format(tokens));
      }
    }
    yield s("text", { x: right, y: TALL - 8, "text-anchor": "end" }, "capacity, tokens →");
    yield s("text", { x: 14, y: SIDES.top, "text-anchor": "end", transform: `rotate(-90 14 ${SIDES.top})` }, this.curves.names[this.ratio]);
  }

  mark() {
    const { curves, block, capacity, ratio } = this;
    const tokens = curves.capacities[capacity], size = curves.blocks[block], held = Math.floor(tokens / size), x = this.x(tokens);
    const values = curves.ratios[ratio][block].map((line) => line[capacity]);
    this.marks.replaceChildren(
      s("line", { x1: x, x2: x, y1: SIDES.top, y2: TALL - SIDES.bottom }),
      ...values.flatMap((value, k) => value === null ? [] : [s("circle", { cx: x, cy: this.y(value), r: 4.5, fill: curves.looks[k]?.colour ?? "currentColor" })]),
    );
    this.say(this.blocks, block, count(size, "token"));
    this.say(this.capacities, capacity, count(tokens, "token"));
    this.select.value = ratio;
    this.caption.textContent = `${count(tokens, "token")}: ${held ? `room for ${count(held, "block")} of ${size.toLocaleString("en")}` :
      `less than one block of ${size.toLocaleString("en")}`}`;
    const names = Object.keys(curves.names);
    this.head.replaceChildren(h("tr", {}, h("th", { scope: "col", class: "fm-hit-policy" }, "Policy"),
      ...names.map((name) => h("th", { scope: "col", title: curves.names[name], "aria-current": name === ratio && "true" }, `by ${name}`))));
    this.body.replaceChildren(...curves.policies.map((policy, k) => h("tr", {},
      h("th", { scope: "row" }, this.swatch(curves.looks[k]), curves.looks[k] ? policy : `${policy}, reads the future`),
      ...names.map((name) => h("td", { "aria-current": name === ratio && "true" }, percent(curves.ratios[name][block][k][capacity]))))));
  }

  say({ input, shown }, at, words) {
    input.value = at;
    input.setAttribute("aria-valuetext", words);
    shown.textContent = words;
  }

  swatch(look) {
    return s("svg", { class: "fm-hit-swatch", viewBox: "0 0 34 8", "aria-hidden": "true" }, s("line", { x1: 0, x2: 34, y1: 4, y2: 4, ...stroke(look) }));
  }

  press(event) {
    const box = this.chart.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * WIDE;
    const far = this.curves.capacities.map((tokens) => Math.abs(this.x(tokens) - x)), at = far.indexOf(Math.min(...far));
    if (at !== this.capacity) this.choose("capacity_tokens", this.curves.capacities[at]);
    event.preventDefault();
  }
}
