// Map and text of one or two runs, and of the optimum under them, sharing one step, one token in hand and one zoom.
const COLOURS = ["empty", "gone", "a", "b", "o", "both", "mark", "ink"];
const PLAY_SECONDS = 12;
const KEYS = [  // in the map; the text and the step slider know the arrows too
  ["← →", "one step back or on (with Shift ten)"], ["↑ ↓", "one token up or down"], ["Page Up, Page Down", "a tenth of the text"],
  ["Home, End", "first or last step"], ["+ −", "zoom; so does the wheel in a focused map, or with Ctrl"], ["0, Escape", "whole map, no token"],
];
const KEY_OF_REASON = ["Enter", "why the token in hand was evicted"];

class RetentionView {
  // changed({step, mode, explain}) is called when the reader, not the caller, moved the step, changed the mode, or, where
  // `explains`, chose a token to be told why it was evicted.
  constructor(root, changed = () => {}, explains = false) {
    this.root = root;
    this.changed = changed;
    this.explains = explains;
    this.n = 0;
    this.step = 0;
    this.hovered = this.hoveredStep = this.pinned = null;
    this.mode = "pair";
    this.runs = [];
    this.optimum = null;
    this.maps = [0, 1, 2].map(() => new RetentionCanvas(this));
    this.texts = [0, 1, 2].map(() => new TokenText(this));
    this.palette = new Palette(root, COLOURS);
    this.build();
    watchTheme(root, () => this.repaint());
  }

  build() {
    const name = freshId("mode");
    this.modes = ["pair", "difference"].map((mode) => h("input", {
      type: "radio", name, value: mode, id: freshId(mode), onchange: () => this.setMode(mode, true),
    }));
    this.modeBox = h("div", { class: "fm-segments", role: "radiogroup", "aria-label": "How to show the two policies" },
      ...this.modes.flatMap((input, k) => [input, h("label", { for: input.id }, ["Side by side", "Difference"][k])]));
    const button = (words, title, act) => h("button", { type: "button", class: "fm-icon", title, "aria-label": title, onclick: act }, words);
    this.zoomBox = h("div", { class: "fm-zoom", role: "group", "aria-label": "Zoom" },
      button("−", "Zoom out", () => this.zoomHere(1.5)), button("+", "Zoom in", () => this.zoomHere(1 / 1.5)),
      button("Whole", "Show the whole map", () => this.reset()));
    this.help = h("details", { class: "fm-help" }, h("summary", {}, "Keys"), h("dl", {}, ...[...KEYS, ...(this.explains ? [KEY_OF_REASON] : [])].flatMap(([keys, does]) =>
      [h("dt", {}, keys), h("dd", {}, does)])));
    this.legend = h("div", { class: "fm-legend", role: "list", "aria-label": "Legend" });
    this.solving = h("div", { class: "fm-solving", hidden: true });
    const [mapA, mapB, mapO] = this.maps, [textA, textB, textO] = this.texts;
    for (const third of [mapO, textO]) third.element.classList.add("fm-third");
    this.stage = h("div", { class: "fm-stage" }, ...[mapA, mapB, textA, textB].map((part) => part.element), this.solving, mapO.element, textO.element);
    this.play = h("button", { type: "button", class: "fm-play", title: "Play the reading", "aria-label": "Play the reading", onclick: () => this.togglePlay() }, "▶");
    this.slider = h("input", {
      type: "range", class: "fm-step", min: "0", value: "0", "aria-label": "Step",
      oninput: () => this.setStep(Number(this.slider.value)),
    });
    this.stepLabel = h("output", { class: "fm-step-label" });
    this.readout = h("div", { class: "fm-readout", role: "status", "aria-live": "polite" });
    this.root.append(
      h("div", { class: "fm-view-bar" }, this.legend, h("div", { class: "fm-tools" }, this.modeBox, this.zoomBox)),
      this.stage,
      h("div", { class: "fm-scrub" }, this.play, this.slider, this.stepLabel),
      h("div", { class: "fm-foot" }, this.readout, this.help),
    );
  }

  get colours() {
    return this.palette.colours;
  }

  get token() {
    return this.hovered ?? this.pinned;
  }

  setTokens(tokens) {
    this.tokens = tokens;
    this.n = tokens.length;
    this.step = Math.max(0, this.n - 1);
    this.slider.max = this.n - 1;
    this.frame = this.whole();
    this.texts.forEach((text) => text.setTokens(tokens));
  }

  whole() {
    return { i0: 0, i1: this.n, t0: 0, t1: this.n };
  }

  // One run, or two that are compared; and the optimum, if it is known, or words in its place.
  setRuns(runs, optimum = null, words = "") {
    this.runs = runs;
    this.optimum = optimum;
    this.solving.textContent = words;
    this.solving.hidden = !words;
    this.pairing = runs.length === 2 ? new Pairing(runs[0], runs[1]) : null;
    this.arrange();
  }

  arrange() {
    const two = this.runs.length === 2, difference = two && this.mode === "difference";
    this.modeBox.hidden = !two;
    this.modes.forEach((input) => { input.checked = input.value === this.mode; });
    this.root.dataset.runs = this.runs.length;
    this.stage.dataset.layout = two && !difference ? "pair" : "single";
    this.maps[1].element.hidden = this.texts[1].element.hidden = !two || difference;
    const badge = (side) => h("span", { class: `fm-badge fm-badge-${side}` }, side.toUpperCase());
    const sources = difference
      ? [{ kind: "difference", pairing: this.pairing, badges: () => [badge("a"), " ", badge("b"), " "], label: "who holds what" }]
      : this.runs.map((run, k) => ({ kind: "run", run, side: "ab"[k], badges: () => (two ? [badge("ab"[k]), " "] : []), label: run.label }));
    sources.forEach((source, k) => {
      this.maps[k].show(source, [...source.badges(), source.label]);
      this.texts[k].show(source, source.badges());
    });
    this.maps[2].element.hidden = this.texts[2].element.hidden = !this.optimum;
    this.root.dataset.optimum = this.optimum ? "yes" : "no";
    if (this.optimum) {
      this.maps[2].show({ kind: "run", run: this.optimum, side: "o" }, [badge("o"), " ", this.optimum.label, h("span", { class: "fm-aside" }, " · the best in hindsight")]);
      this.texts[2].show({ kind: "run", run: this.optimum, side: "o", label: this.optimum.label }, [badge("o"), " "]);
    }
    this.drawLegend(difference);
    this.moved();
    this.root.dataset.seq = Number(this.root.dataset.seq ?? 0) + 1;
    this.root.dispatchEvent(new CustomEvent("fmlab:painted", { bubbles: true }));
  }

  drawLegend(difference) {
    const heads = this.runs[0]?.heads ?? 1;
    const item = (look, words) => h("span", { class: "fm-legend-item", role: "listitem" },
      h("span", { class: `fm-swatch ${look}`, "aria-hidden": "true" }), words);
    const gone = h("s", {}, "struck through");
    const items = difference
      ? [item("fm-swatch-both", "held by both"), item("fm-swatch-only-a", "only by A"), item("fm-swatch-only-b", "only by B"),
        item("fm-swatch-gone", h("span", {}, "by neither, ", gone)), item("fm-swatch-empty", "not read yet")]
      : [item(heads > 1 ? "fm-swatch-ramp" : "fm-swatch-held", heads > 1 ? `held by some to all of ${heads} heads` : "held"),
        item("fm-swatch-gone", h("span", {}, "evicted, ", gone)), item("fm-swatch-empty", "not read yet")];
    this.legend.replaceChildren(...items);
  }

  repaint() {
    this.maps.forEach((map) => map.paint());
  }

  painted() {
    this.root.dataset.paints = Number(this.root.dataset.paints ?? 0) + 1;
  }

  setMode(mode, byReader = false) {
    if (this.mode === mode) return;
    this.mode = mode;
    if (this.runs.length === 2) this.arrange();
    if (byReader) this.changed({ mode });
  }

  setStep(step, byReader = true) {
    step = clamp(Math.round(step), 0, Math.max(0, this.n - 1));
    if (step === this.step) return;
    this.step = step;
    if (!this.pending) {
      this.pending = requestAnimationFrame(() => {
        this.pending = null;
        this.showStep();
        this.texts.forEach((text) => text.reveal(this.step));
        if (byReader) this.changed({ step: this.step });
      });
    }
  }

  showStep() {
    const span = this.frame.t1 - this.frame.t0;
    if (this.step < this.frame.t0 || this.step >= this.frame.t1) {
      const t0 = clamp(this.step - span / 2, 0, this.n - span);
      this.frame = { ...this.frame, t0, t1: t0 + span };
      this.maps.forEach((map) => map.paint());
    }
    this.texts.forEach((text) => text.update());
    this.moved();
    this.root.dispatchEvent(new CustomEvent("fmlab:stepped", { bubbles: true }));
  }

  setHover(token, step = null, from = "map") {
    if (token === this.hovered && step === this.hoveredStep) return;
    const changed = token !== this.hovered;
    this.hovered = token;
    this.hoveredStep = step;
    if (changed && token !== null && from === "map") this.texts.forEach((text) => text.reveal(token));
    this.moved();
  }

  pin(token, from = "map") {
    this.pinned = token;
    this.hovered = this.hoveredStep = null;
    if (token !== null) {
      if (from === "map") this.texts.forEach((text) => text.reveal(token));
      const span = this.frame.i1 - this.frame.i0;
      if (token < this.frame.i0 || token >= this.frame.i1) {
        const i0 = clamp(token - span / 2, 0, this.n - span);
        this.frame = { ...this.frame, i0, i1: i0 + span };
        this.maps.forEach((map) => map.paint());
      }
    }
    this.moved();
  }

  choose(token, from = "map") {
    this.pin(token, from);
    this.explain(token);
  }

  // The reader wants to know why this token was evicted.
  explain(token) {
    if (this.explains) this.changed({ explain: token });
  }

  // Everything that shows the step or the token in hand and costs nothing.
  moved() {
    this.maps.forEach((map) => map.mark());
    this.texts.forEach((text) => text.mark());
    this.slider.value = this.step;
    this.slider.setAttribute("aria-valuetext", `step ${this.step} of ${this.n - 1}`);
    this.stepLabel.textContent = this.n ? `step ${this.step.toLocaleString("en")} of ${(this.n - 1).toLocaleString("en")}` : "";
    this.readout.textContent = this.describe();
  }

  describe() {
    if (!this.runs.length || !this.n) return "";
    const i = this.token, t = this.hoveredStep ?? this.step;
    if (i === null) return `Step ${t} reads ${quoted(this.tokens[t])}. Point at the map or the text to follow one token.`;
    if (t < i) return `Token ${i} ${quoted(this.tokens[i])} is read at step ${i}; step ${t} comes before it.`;
    const parts = [...this.runs, ...(this.optimum ? [this.optimum] : [])].map((run, k) => {
      const held = run.holders(i, t), [first, last] = run.span(i);
      const who = run === this.optimum ? "the optimum " : this.runs.length === 2 ? `${"AB"[k]} ` : "";
      const now = run.heads === 1 ? (held ? "holds it" : "has evicted it") : `holds it in ${held} of ${run.heads} heads`;
      const until = (expiry) => (expiry >= run.n ? "the end" : `step ${expiry - 1}`);
      const seen = first === last ? `seen until ${until(last)}` : `seen until ${until(first)} to ${until(last)}`;
      return `${who || "the memory "}${now} (${seen})`;
    });
    return `Token ${i} ${quoted(this.tokens[i])} at step ${t}: ${parts.join("; ")}.`;
  }

  zoom(factor, fx = 0.5, fy = 0.5) {
    const along = (low, high, f) => {
      const span = clamp((high - low) * factor, Math.min(8, this.n), this.n);
      const start = clamp(low + (high - low) * f - span * f, 0, this.n - span);
      return [start, start + span];
    };
    const [i0, i1] = along(this.frame.i0, this.frame.i1, fy), [t0, t1] = along(this.frame.t0, this.frame.t1, fx);
    this.frame = { i0, i1, t0, t1 };
    this.maps.forEach((map) => map.paint());
  }

  // Around the step and the token in hand, for the keyboard and the buttons.
  zoomHere(factor) {
    const { t0, t1, i0, i1 } = this.frame, token = this.token ?? this.step;
    this.zoom(factor, clamp((this.step + 0.5 - t0) / (t1 - t0), 0, 1), clamp((token + 0.5 - i0) / (i1 - i0), 0, 1));
  }

  reset() {
    this.frame = this.whole();
    this.pin(null);
    this.explain(null);
    this.maps.forEach((map) => map.paint());
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.round(this.n / 10)), stride = event.shiftKey ? 10 : 1;
    const step = (to) => this.setStep(to);
    const token = (by) => this.pin(clamp((this.token ?? this.step) + by * stride, 0, this.n - 1));
    const keys = {
      ArrowLeft: () => step(this.step - stride), ArrowRight: () => step(this.step + stride),
      ArrowUp: () => token(-1), ArrowDown: () => token(1),
      PageUp: () => step(this.step + page), PageDown: () => step(this.step - page),
      Home: () => step(0), End: () => step(this.n - 1),
      "+": () => this.zoomHere(1 / 1.5), "=": () => this.zoomHere(1 / 1.5), "-": () => this.zoomHere(1.5),
      0: () => this.reset(), Escape: () => this.reset(), Enter: () => this.choose(this.token ?? this.step),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  }

  togglePlay() {
    if (this.playing) return this.stop();
    if (this.step >= this.n - 1) this.setStep(0);
    const start = performance.now(), from = this.step >= this.n - 1 ? 0 : this.step;
    const tick = (now) => {
      const to = from + ((now - start) / 1000 / PLAY_SECONDS) * this.n;
      this.setStep(Math.min(to, this.n - 1));
      this.playing = to < this.n - 1 && this.root.isConnected ? requestAnimationFrame(tick) : null;
      if (!this.playing) this.stop();
    };
    this.playing = requestAnimationFrame(tick);
    this.play.textContent = "❚❚";
    this.play.setAttribute("aria-label", "Pause the reading");
  }

  stop() {
    if (this.playing) cancelAnimationFrame(this.playing);
    this.playing = null;
    this.play.textContent = "▶";
    this.play.setAttribute("aria-label", "Play the reading");
  }
}
