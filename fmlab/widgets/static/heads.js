// The map of heads: layers across, KV heads down, coloured by mass recall or regret; a cell picks its head.
const MEASURES = [["mass_recall", "Mass recall", "mass recall"], ["regret", "Regret", "regret"]];
const CIVIDIS = [[0, 34, 78], [53, 69, 108], [102, 105, 112], [148, 142, 119], [200, 184, 102], [254, 232, 56]];
const ROOM_FOR_NUMBERS = 12;  // layers; with more the cells are too narrow

function cividis(share) {
  const at = clamp(share, 0, 1) * (CIVIDIS.length - 1), k = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return CIVIDIS[k].map((from, c) => Math.round(from + (CIVIDIS[k + 1][c] - from) * (at - k)));
}

class HeadMap {
  // picked(layer, head) is called with the head that the reader wants to see; null, null is the mean of all.
  constructor(picked) {
    this.picked = picked;
    this.measure = "mass_recall";
    const name = freshId("measure");
    this.inputs = MEASURES.map(([value]) => h("input", {
      type: "radio", name, value, id: freshId(value), onchange: () => this.choose(value),
    }));
    this.segments = h("div", { class: "fm-segments fm-measures", role: "radiogroup", "aria-label": "What colours the heads" },
      ...this.inputs.flatMap((input, k) => [input, h("label", { for: input.id }, MEASURES[k][1])]));
    this.mean = h("button", { type: "button", class: "fm-button fm-mean", onclick: () => this.pickNow(null, null) }, "Mean of all");
    this.scale = h("div", { class: "fm-head-scale" });
    this.hint = h("div", { class: "fm-hint" });
    this.grids = h("div", { class: "fm-head-grids" });
    this.element = h("section", { class: "fm-heads-map", "aria-label": "Map of heads" },
      h("div", { class: "fm-section-bar" }, h("div", { class: "fm-section-title" }, "Heads"), this.segments, this.scale, this.mean),
      this.grids, this.hint);
  }

  choose(measure) {
    this.measure = measure;
    this.draw();
  }

  show(heads, choice) {
    this.heads = heads;
    this.choice = choice;
    this.draw();
  }

  draw() {
    const { heads, choice } = this;
    if (!heads?.runs) return;
    const known = heads.runs.some((run) => run.regret), [, title, words] = MEASURES.find(([name]) => name === (known ? this.measure : "mass_recall"));
    const measure = known ? this.measure : "mass_recall";
    this.inputs.forEach((input) => {
      input.checked = input.value === measure;
      input.disabled = input.value === "regret" && !known;
    });
    this.segments.lastChild.title = known ? "" : `To see the regret, ${heads.how}`;
    const runs = heads.runs.filter((run) => measure !== "regret" || run.side !== "o");  // the optimum has none
    const all = runs.flatMap((run) => (run[measure] ?? []).flat());
    const low = measure === "regret" ? 0 : Math.min(...all), high = Math.max(...all);
    this.scale.hidden = !all.length;
    this.scale.replaceChildren(h("span", {}, low.toFixed(2)), h("span", { class: "fm-head-ramp", "aria-hidden": "true" }), h("span", {}, high.toFixed(2)));
    this.mean.disabled = choice.layer === null && choice.head === null;
    this.hint.textContent = all.length ? "Layers from left to right, KV heads from top to bottom. Click a head, or reach it with the arrows and press Enter, to see it alone." : "…";
    const focused = this.grids.contains(document.activeElement) ? document.activeElement.dataset.place : null;
    this.grids.replaceChildren(...runs.map((run) => this.grid(run, measure, title, words, low, high)));
    if (focused) this.grids.querySelector(`[data-place="${focused}"]`)?.focus({ preventScroll: true });
  }

  grid(run, measure, title, words, low, high) {
    const { layers, kv_heads: count } = this.heads, { choice } = this, values = run[measure], roomy = layers.length <= ROOM_FOR_NUMBERS;
    const one = [Math.max(0, layers.indexOf(choice.layer)), choice.head ?? 0];  // the one that Tab reaches
    const cell = (head, at) => {
      const value = values ? values[at][head] : null;
      const picked = (choice.layer === null || choice.layer === layers[at]) && (choice.head === null || choice.head === head)
        && !(choice.layer === null && choice.head === null);
      const told = value === null ? "not measured yet" : `${words} ${value.toFixed(3)}`;
      const name = `Layer ${layers[at]}, KV head ${head}: ${told}`;
      const node = h("button", {
        type: "button", class: "fm-head", role: "gridcell", title: name, "aria-label": `${run.label}, ${name}`, "aria-selected": String(picked),
        tabindex: at === one[0] && head === one[1] ? "0" : "-1", "data-place": `${run.side}-${head}-${at}`,
        onclick: () => this.pick(layers[at], head),
      }, roomy && value !== null ? value.toFixed(2) : "");
      if (value !== null) {
        const colour = cividis((value - low) / (high - low || 1));
        node.style.background = `rgb(${colour.join(",")})`;
        node.style.color = colour[0] * 0.3 + colour[1] * 0.59 + colour[2] * 0.11 > 120 ? "#111" : "#fff";
      }
      return node;
    };
    const columns = `auto repeat(${layers.length}, minmax(${roomy ? 36 : 9}px, 1fr))`;
    const row = (head) => {
      const node = h("div", { class: "fm-head-row", role: "row" }, h("span", { class: "fm-head-name", role: "rowheader" }, String(head)),
        ...layers.map((_, at) => cell(head, at)));
      node.style.gridTemplateColumns = columns;
      return node;
    };
    const every = Math.ceil(layers.length / ROOM_FOR_NUMBERS);
    const foot = h("div", { class: "fm-head-row fm-head-foot", "aria-hidden": "true" }, h("span", { class: "fm-head-name" }, ""),
      ...layers.map((layer, at) => h("span", { class: "fm-head-layer" }, at % every ? "" : String(layer))));
    foot.style.gridTemplateColumns = columns;
    return h("div", { class: "fm-head-run" },
      h("span", { class: `fm-badge fm-badge-${run.side}`, title: run.label }, run.side.toUpperCase()),
      h("div", { class: "fm-head-grid", role: "grid", "aria-label": `${run.label}: ${title} of each head`, onkeydown: (event) => this.key(event) },
        ...Array.from({ length: count }, (_, head) => row(head)), foot));
  }

  pick(layer, head) {
    const again = this.choice.layer === layer && this.choice.head === head;  // a second time: back to the mean
    this.pickNow(again ? null : layer, again ? null : head);
  }

  // The reader's own choice is shown at once.
  pickNow(layer, head) {
    this.choice = { ...this.choice, layer, head };
    this.draw();
    this.picked(layer, head);
  }

  key(event) {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [side, head, at] = event.target.dataset.place.split("-");
    const next = [clamp(Number(head) + move[0], 0, this.heads.kv_heads - 1), clamp(Number(at) + move[1], 0, this.heads.layers.length - 1)];
    const cell = this.grids.querySelector(`[data-place="${side}-${next[0]}-${next[1]}"]`);
    event.target.tabIndex = -1;
    cell.tabIndex = 0;
    cell.focus();
  }
}
