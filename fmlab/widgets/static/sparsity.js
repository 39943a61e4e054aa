// The blocks of a pattern over a head's attention: pickers and sliders, the map, what is in hand, figures, what was measured.
const AT_WORK = "busy";

// A slider over the stops of a setting, with a box for any other value.
class StopSlider {
  constructor(field, value, changed) {
    this.stops = field.stops;
    const whole = field.kind === "int", words = field.name;
    this.slider = h("input", { type: "range", class: "fm-small-range", min: "0", max: String(field.stops.length - 1), step: "1", "aria-label": words,
      "data-setting": words, oninput: () => this.say(this.stops[Number(this.slider.value)], changed) });
    this.box = h("input", { type: "number", class: "fm-number", min: String(field.stops[0]), step: whole ? "1" : "any", "aria-label": `${words}, any value`,
      onchange: () => this.box.value !== "" && this.box.checkValidity() && this.say(Number(this.box.value), changed) });
    this.element = h("div", { class: "fm-field fm-sparse-setting" }, h("span", { class: "fm-label" }, words), this.slider, this.box);
    this.draw(value);
  }

  draw(value) {
    const nearest = this.stops.reduce((best, stop, at) => (Math.abs(stop - value) < Math.abs(this.stops[best] - value) ? at : best), 0);
    this.slider.value = String(nearest);
    this.slider.setAttribute("aria-valuetext", String(value));
    if (document.activeElement !== this.box) this.box.value = String(value);
  }

  say(value, changed) {
    this.draw(value);
    changed(value);
  }
}

class SparsityView {
  constructor(model, root) {
    Object.assign(this, { model, root, about: model.get("about"), tokens: model.get("tokens"), serial: 0, paints: 0, born: 1e6 * Math.ceil(Math.random() * 1e6) });
    this.choice = this.told();
    root.classList.add("fmlab", "fm-sparse");
    keepKeys(root);
    this.build();
    this.listen();
    watchTheme(root, () => this.map.paint());
    this.showPatterns();
    this.showAll();
    this.showStatus();
    this.showMetering();
  }

  // What the kernel shows, as a choice.
  told() {
    const { layer, head, key, values, label } = this.model.get("seen");
    return { layer, head, key, values, label };
  }

  build() {
    const { about } = this, picked = (name) => (event) => this.choose({ [name]: Number(event.target.value) });
    const number = (kind, words, values, name) => h("select", { class: kind, "aria-label": words, onchange: picked(name) }, ...values.map((value) => h("option", { value: String(value) }, `${words.toLowerCase()} ${value}`)));
    this.layer = number("fm-layer", "Layer", about.layers, "layer");
    this.head = number("fm-head-of", "Head", Array.from({ length: about.heads }, (_, at) => at), "head");
    const refresh = () => this.model.send({ kind: "refresh" });
    this.pattern = h("select", { class: "fm-pattern", "aria-label": "Pattern", onfocus: refresh, onpointerdown: refresh, onchange: () => this.pick(this.pattern.value) });
    this.settings = h("div", { class: "fm-settings" });
    this.summary = h("div", { class: "fm-sparse-summary" });
    this.density = h("input", { type: "range", class: "fm-density", min: "1", max: "100", step: "0.5", "aria-label": "Density wanted, in percent of the causal pairs", disabled: true,
      oninput: () => this.ask({ kind: "density", density: Number(this.density.value) / 100 }) });
    this.reached = h("output", { class: "fm-value fm-sparse-reached" });
    this.status = h("div", { class: "fm-status", role: "status" });
    this.map = new BlockMap(this.root, about.tokens, about.block, {
      hovered: (cursor) => this.hover(cursor), looked: (frame) => this.look(frame), painted: () => this.painted(),
    });
    this.readout = h("div", { class: "fm-readout fm-sparse-readout", "aria-live": "polite" });
    this.figures = h("div", { class: "fm-figures fm-sparse-figures" });
    this.frontier = new Frontier();
    const button = (kind, words, onclick) => h("button", { type: "button", class: `fm-button ${kind}`, onclick }, words);
    this.measure = button("fm-measure", "Measure speed", () => this.model.send({ kind: "measure" }));
    this.clear = button("fm-clear", "Clear", () => this.model.send({ kind: "clear" }));
    this.metering = h("div", { class: "fm-status fm-sparse-metering", role: "status" });
    this.root.append(
      h("div", { class: "fm-header" }, h("div", {},
        h("div", { class: "fm-title", role: "heading", "aria-level": "2" }, "Which blocks does attention need?"),
        h("div", { class: "fm-subtitle" }, `Full causal attention of one head, as it really is. The blocks of ${about.block} x ${about.block} tokens that the pattern chooses are clear, the others dimmed: a kernel never reads them.`)),
        h("div", { class: "fm-source" }, about.source)),
      h("div", { class: "fm-controls fm-sparse-controls" },
        h("div", { class: "fm-sparse-picks" }, this.pattern, this.layer, this.head, h("div", { class: "fm-field" }, h("span", { class: "fm-label" }, "Density"), this.density, this.reached)),
        this.summary, this.settings),
      this.status,
      h("div", { class: "fm-stage fm-sparse-stage" },
        h("div", {}, h("div", { class: "fm-sparse-bar" }, h("div", { class: "fm-legend" },
          h("span", { class: "fm-legend-item" }, h("span", { class: "fm-swatch fm-swatch-chosen" }), "chosen"), h("span", { class: "fm-legend-item" }, h("span", { class: "fm-swatch fm-swatch-dimmed" }), "not chosen"),
          h("span", { class: "fm-legend-item" }, "stronger colour: more attention, from 0.001% to 100% on a logarithmic scale")), this.map.tools),
        this.map.element, this.readout),
        h("div", { class: "fm-sparse-side" }, this.figures, this.frontier.element)),
      h("div", { class: "fm-sparse-measure" }, this.measure, this.clear, this.metering), this.frontier.table);
  }

  listen() {
    const handlers = {
      "change:seen": () => this.showAll(), "change:tile_shades": () => this.showAll(), "change:patterns": () => this.showPatterns(), "change:reach": () => this.showReach(),
      "change:points": () => this.showPoints(), "change:status": () => this.showStatus(), "change:metering": () => this.showMetering(),
    };
    for (const [name, handler] of Object.entries(handlers)) this.model.on(name, handler);
    this.close = () => {
      Object.entries(handlers).forEach(([name, handler]) => this.model.off(name, handler));
      this.map.close();
    };
  }

  // One question at a time is under way; of those that come meanwhile only the last is asked.
  ask(message) {
    if (this.asked !== undefined) {
      this.next = message;
      return;
    }
    this.asked = this.born + ++this.serial;
    this.model.send({ ...message, serial: this.asked });
  }

  choose(change) {
    this.choice = { ...this.choice, ...change };
    const { layer, head, key, values } = this.choice;
    this.ask({ kind: "choose", choice: { layer, head, key, values } });
  }

  pick(key) {
    const pattern = this.patterns.find((known) => known.key === key);
    this.choose({ key, values: Object.fromEntries(pattern.fields.map((field) => [field.name, field.value])) });
    this.showSettings();
  }

  showPatterns() {
    this.patterns = this.model.get("patterns");
    this.showSettings();
  }

  showSettings() {
    const { key, values, label } = this.choice, known = this.patterns.find((pattern) => pattern.key === key);
    options(this.pattern, [...(known ? [] : [["", label]]), ...this.patterns.map((pattern) => [pattern.key, pattern.name])], known ? key : "");
    this.summary.textContent = known ? known.summary.replaceAll("`", "") : "as given in Python";
    this.layer.value = String(this.choice.layer);
    this.head.value = String(this.choice.head);
    if (this.drawn === key && known) {
      for (const { name } of known.fields) this.controls[name]?.draw(values[name]);
      return;
    }
    this.drawn = key;
    this.controls = {};
    this.settings.replaceChildren(...(known ? known.fields : []).map((field) => {
      const changed = (value) => this.choose({ values: { ...this.choice.values, [field.name]: value } });
      if (!field.stops) return settingControl(field, values[field.name], changed);
      this.controls[field.name] = new StopSlider(field, values[field.name], changed);
      return this.controls[field.name].element;
    }));
  }

  showAll() {
    const { model } = this, seen = model.get("seen"), whole = model.get("whole"), tile = model.get("tile");
    if (!seen.worth || !whole.rows) return;
    const another = seen.serial < this.born || seen.serial >= this.born + 1e6;  // a second view of the widget asked later
    if (this.asked !== undefined && (seen.serial === this.asked || (another && seen.serial !== this.before))) {
      this.asked = undefined;
      const next = this.next;
      this.next = undefined;
      if (next) this.ask(next);
    }
    if (this.asked === undefined) this.choice = this.told();
    if (this.shownMap !== model.get("shades")) {
      this.shownMap = model.get("shades");
      this.whole = new Shades({ ...whole, blocks: Math.ceil(this.about.tokens / this.about.block) }, this.shownMap);
      const view = model.get("masses");
      this.masses = new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
    }
    const fits = tile.rows && tile.layer === whole.layer && tile.head === whole.head;
    const chosen = model.get("chosen");
    this.before = this.drawnSerial = seen.serial;
    this.map.show(this.whole, fits ? new Shades(tile, model.get("tile_shades")) : null, new Uint8Array(chosen.buffer, chosen.byteOffset, chosen.byteLength), seen.label);
    this.showFigures(seen);
    this.showPoints();
    this.showReach();
    if (this.asked === undefined) this.showSettings();
    this.hover(this.map.cursor);
  }

  showFigures({ worth, head }) {
    const row = (name, help, ...cells) => ({ name, help, cells: cells.map(([value, text]) => ({ text: text ?? percents(value), share: value })) });
    const none = [null, "–"];
    this.figures.replaceChildren(figureTable({
      caption: `Layer ${this.model.get("seen").layer}`,
      columns: [{ label: `head ${head}` }, { label: `${this.about.heads} heads` }, { label: "Oracle, as dense" }],
      rows: [
        row("density", "chosen causal pairs over all", [worth.density], [worth.all_density], [worth.all_density]),
        row("mass recall", "attention mass on the chosen blocks, mean over all queries", [worth.recall], [worth.all_recall], [worth.oracle_recall]),
        row("least of any head", "the head that keeps least of its attention mass", none, [worth.least_recall], none),
        row("output error", "norm of the difference to full attention, over the norm of full attention", [Math.min(worth.error, 1), percents(worth.error)], none, none),
      ],
    }));
  }

  showPoints() {
    const { model } = this, seen = model.get("seen"), whole = model.get("whole"), points = model.get("points");
    if (seen.worth && whole.oracle) this.frontier.show(whole.oracle, seen.worth, points, seen.layer);
    this.root.dataset.points = String(points.length);
    this.clear.disabled = !points.length;
  }

  showReach() {
    const { stops } = this.model.get("reach"), { worth } = this.model.get("seen"), known = Boolean(stops?.length);
    this.density.disabled = !known;
    this.density.title = known ? "" : stops ? "this pattern has no number to turn" : "working out what the pattern can reach …";
    if (!worth) return;
    if (document.activeElement !== this.density) this.density.value = String(worth.all_density * 100);
    const ends = known ? stops.map(([, density]) => density) : null;
    this.reached.textContent = `${percents(worth.all_density)}${ends ? ` (reaches ${percents(Math.min(...ends), 0)} to ${percents(Math.max(...ends), 0)})` : ""}`;
    this.density.setAttribute("aria-valuetext", this.reached.textContent);
  }

  painted() {
    this.root.dataset.paints = this.map.plot.dataset.paints = String(++this.paints);
    this.root.dataset.serial = String(this.drawnSerial);
  }

  look({ i0, i1, j0, j1 }) {
    const { whole } = this, span = i1 - i0;
    if (!whole || Math.ceil(span / 512) >= whole.each) return;
    const inside = (low, high) => [clamp(Math.floor(low - span / 4), 0, this.about.tokens), clamp(Math.ceil(high + span / 4), 0, this.about.tokens)];
    this.model.send({ kind: "look", queries: inside(i0, i1), keys: inside(j0, j1) });
  }

  // The text of a block, the token in hand marked.
  words(at, block) {
    const { tokens } = this, start = Math.floor(at / block) * block, end = Math.min(start + block, tokens.length), text = (from, to) => tokens.slice(from, to).join("");
    return [`${start.toLocaleString("en")}–${(end - 1).toLocaleString("en")}`, [text(start, at), h("mark", {}, tokens[at]), text(at + 1, end)]];
  }

  hover(cursor) {
    if (!this.whole) return;
    if (!cursor) {
      this.readout.replaceChildren(h("div", { class: "fm-hint" }, "Point at a block, or focus the map and use the arrows: its queries, its keys and the attention between them. Click the map for the wheel to zoom; drag to move."));
      return;
    }
    const { block } = this.about, { i, j } = cursor, [rows, looking] = this.words(i, block), [columns, looked] = this.words(j, block);
    const row = Math.floor(i / block), column = Math.floor(j / block), queries = Math.min(block, this.about.tokens - row * block);
    const mass = this.masses[row * this.whole.blocks + column] / queries, chosen = this.map.isChosen(i, j);
    const told = column > row ? "the future: nobody sees it" : `${percents(mass, 2)} of these queries' attention, ${chosen ? "chosen" : "not chosen"}`;
    const pair = this.map.near && this.map.source.each === 1 && j <= i ? this.map.source.weight(i, j) : undefined;
    const one = pair === undefined ? null : h("div", {}, `query ${i} ${quoted(this.tokens[i])} to key ${j} ${quoted(this.tokens[j])}: ${pair === null ? "0.001% or less" : `about ${percents(pair, 3)}`}`);
    this.readout.replaceChildren(h("div", { class: "fm-sparse-told" }, `Block ${row}, ${column}: ${told}`), ...(one ? [one] : []),
      h("div", { class: "fm-sparse-words" }, h("span", { class: "fm-label" }, `queries ${rows}`), h("span", {}, ...looking)),
      h("div", { class: "fm-sparse-words" }, h("span", { class: "fm-label" }, `keys ${columns}`), h("span", {}, ...looked)));
  }

  showStatus() {
    this.tell(this.status, this.model.get("status"), false);
    this.root.dataset.state = this.model.get("status").state;
  }

  showMetering() {
    const told = this.model.get("metering");
    this.tell(this.metering, told, true);
    this.root.dataset.metering = told.state;
    this.measure.disabled = told.state === AT_WORK;
  }

  tell(place, { state, text, detail, share }, stoppable) {
    const cancel = place.querySelector(".fm-cancel");
    if (state === AT_WORK && cancel) {  // keep the button under the reader's pointer
      place.querySelector(".fm-status-text").textContent = text;
      place.querySelector("progress").value = share ?? 0;
    } else if (state === AT_WORK) {
      place.replaceChildren(h("progress", { class: "fm-progress", max: "1", value: share ?? undefined, "aria-label": "Progress" }), h("span", { class: "fm-status-text" }, text),
        ...(stoppable ? [h("button", { type: "button", class: "fm-button fm-cancel", onclick: () => this.model.send({ kind: "cancel" }) }, "Cancel")] : []));
    } else if (state === "error") {
      place.replaceChildren(h("div", { class: "fm-error", role: "alert" }, h("div", { class: "fm-error-text" }, text), h("details", {}, h("summary", {}, "Traceback"), h("pre", { tabindex: "0" }, detail))));
    } else place.replaceChildren(h("span", { class: "fm-status-text" }, text));
  }
}
