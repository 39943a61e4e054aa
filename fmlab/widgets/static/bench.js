// Pairs to switch on, a size, and a forest plot that is a table: a row a pair and size, each drawn on one common axis.
const WORKING = "busy";

// The common axis: logarithmic, with every interval, every claim and 1 inside it, all as shares of its width.
class RatioAxis {
  constructor(rows) {
    const values = [1, ...rows.flatMap((row) => [...(row.claim ?? []), ...(row.error ? [] : [row.low, row.high])])];
    const low = Math.log10(Math.min(...values)), high = Math.log10(Math.max(...values)), margin = Math.max(0.06 * (high - low), 0.03);
    this.low = low - margin;
    this.high = high + margin;
  }

  at(value) {
    return `${(((Math.log10(value) - this.low) / (this.high - this.low)) * 100).toFixed(2)}%`;
  }

  ticks() {
    const width = this.high - this.low;
    const steps = width > 2.5 ? [1] : width > 1 ? [1, 3] : width > 0.5 ? [1, 2, 5] : width > 0.2 ? [1, 1.5, 2, 3, 5, 7] : [1, 1.1, 1.2, 1.3, 9];
    const found = [];
    for (let power = Math.floor(this.low); power <= Math.ceil(this.high); power++) {
      for (const step of steps) {
        const value = Number(`${step}e${power}`), place = Math.log10(value);
        if (place > this.low && place < this.high) found.push(value);
      }
    }
    return found;
  }
}

const digits = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });
const ratio = (value) => `${digits(value)} x`;

function sized(size, unit) {
  return `${size.toLocaleString("en")} ${unit}`;
}

class BenchView {
  constructor(model, root) {
    this.model = model;
    this.root = root;
    this.about = model.get("about");
    this.choice = { ...model.get("choice") };
    this.paints = 0;
    root.classList.add("fmlab");
    keepKeys(root);
    this.build();
    this.listen();
    this.showChoice();
    this.showRows();
    this.showStatus();
  }

  build() {
    const { about } = this;
    this.pairs = about.pairs.map((pair) => {
      const box = h("input", { type: "checkbox", class: "fm-pair", id: freshId("pair"), onchange: () => this.pick() });
      const size = h("span", { class: "fm-value" });
      const element = h("div", { class: "fm-bench-pair", title: pair.source }, box,
        h("label", { for: box.id }, pair.name, h("span", { class: "fm-bench-claim" }, pair.claim)), size);
      return { pair, box, size, element };
    });
    const all = (on) => {
      this.pairs.forEach(({ box }) => { box.checked = on; });
      this.pick();
    };
    const button = (kind, words, onclick) => h("button", { type: "button", class: `fm-button ${kind}`, onclick }, words);
    this.stop = h("input", {
      type: "range", class: "fm-size", min: "0", max: String(about.stops - 1), step: "1", oninput: () => this.choose({ stop: Number(this.stop.value) }),
    });
    this.where = h("output", { class: "fm-value" });
    this.rounds = h("input", {
      type: "number", class: "fm-number fm-rounds", min: String(about.fewest), step: "1",
      onchange: () => {
        const rounds = Math.max(about.fewest, Math.round(Number(this.rounds.value)) || 0);
        this.rounds.value = String(rounds);
        this.choose({ rounds });
      },
    });
    this.measure = button("fm-measure", "Measure", () => this.model.send({ kind: "measure", choice: this.choice }));
    this.clear = button("fm-clear", "Clear rows", () => this.model.send({ kind: "clear" }));
    this.status = h("div", { class: "fm-status", role: "status" });
    this.head = h("div", { class: "fm-bench-axis", "aria-hidden": "true" });
    this.body = h("tbody");
    const columns = ["Pair", "Size", this.head, "Speed-up, 95% interval", "n", "Seconds a call", "Verdict"];
    this.table = h("div", { class: "fm-figures fm-bench-table", hidden: true }, h("table", {},
      h("caption", {}, "Baseline over optimised: right of 1 is faster"),
      h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col", "aria-label": name === this.head ? "Plot" : null }, name)))),
      this.body));
    this.legend = h("div", { class: "fm-legend fm-bench-legend", hidden: true },
      h("span", { class: "fm-legend-item" }, h("span", { class: "fm-swatch fm-swatch-claim" }), "claimed range"),
      h("span", { class: "fm-legend-item" }, this.swatch(false), "measured, 95% interval"),
      h("span", { class: "fm-legend-item" }, this.swatch(true), "measured on an unstable machine"));
    this.root.append(
      h("div", { class: "fm-header" }, h("div", {},
        h("div", { class: "fm-title", role: "heading", "aria-level": "2" }, "What is each optimisation worth here?"),
        h("div", { class: "fm-subtitle fm-bench-machine" }, `These are ${about.machine}. Both ways must give the same first; then they take turns. Cells that run meanwhile disturb them.`))),
      h("div", { class: "fm-bench-controls" },
        h("fieldset", { class: "fm-bench-pairs" }, h("legend", { class: "fm-label" }, "Pairs"), ...this.pairs.map(({ element }) => element)),
        h("div", { class: "fm-bench-bar" },
          button("fm-all", "All", () => all(true)), button("fm-none", "None", () => all(false)),
          labelled("Size", this.stop, this.where), labelled("Rounds", this.rounds), this.measure, this.clear)),
      this.status, this.table, this.legend);
  }

  listen() {
    const handlers = {
      "change:choice": () => this.adopt(), "change:rows": () => this.showRows(), "change:status": () => this.showStatus(),
    };
    for (const [name, handler] of Object.entries(handlers)) this.model.on(name, handler);
    this.close = () => Object.entries(handlers).forEach(([name, handler]) => this.model.off(name, handler));
  }

  // The kernel's choice; its echo of what was sent from here is older than what the reader has chosen since.
  adopt() {
    const told = this.model.get("choice");
    if (this.outstanding > 0 && --this.outstanding > 0) return;
    this.choice = { ...told };
    this.showChoice();
  }

  choose(change) {
    const next = { ...this.choice, ...change };
    if (JSON.stringify(next) !== JSON.stringify(this.choice)) this.outstanding = (this.outstanding ?? 0) + 1;
    this.choice = next;
    this.showChoice();
    this.model.send({ kind: "choose", choice: next });
  }

  pick() {
    this.choose({ pairs: this.pairs.filter(({ box }) => box.checked).map(({ pair }) => pair.name) });
  }

  showChoice() {
    const { pairs, stop, rounds } = this.choice, last = this.about.stops - 1;
    for (const { pair, box, size, element } of this.pairs) {
      box.checked = pairs.includes(pair.name);
      element.classList.toggle("fm-bench-off", !box.checked);
      size.textContent = sized(pair.sizes[stop], pair.unit);
    }
    this.stop.value = String(stop);
    this.where.textContent = stop === 0 ? "each pair's smallest" : stop === last ? "each pair's largest" : `step ${stop} of ${last}`;
    this.stop.setAttribute("aria-valuetext", this.where.textContent);
    if (document.activeElement !== this.rounds) this.rounds.value = String(rounds);  // not under the reader's fingers
    this.enable();
  }

  enable() {
    this.measure.disabled = this.model.get("status").state === WORKING || !this.choice.pairs.length;
    this.clear.disabled = !this.model.get("rows").length;
  }

  showRows() {
    const rows = this.model.get("rows"), axis = new RatioAxis(rows);
    this.table.hidden = this.legend.hidden = !rows.length;
    this.head.replaceChildren(...axis.ticks().map((value) => {
      const tick = h("span", {}, ratio(value));
      tick.style.left = axis.at(value);
      return tick;
    }));
    this.body.replaceChildren(...rows.map((row, at) => {
      const first = at === 0 || rows[at - 1].pair !== row.pair;
      const name = h("th", { scope: "row" }, first ? row.pair : h("span", { class: "fm-bench-again" }, row.pair));
      const size = h("td", {}, sized(row.size, row.unit));
      if (row.error) {
        return h("tr", { class: "fm-bench-refused" }, name, size,
          h("td", { class: "fm-bench-error", colspan: "4" }, row.error), h("td", { class: "fm-bench-verdict" }, row.verdict));
      }
      const told = `${ratio(row.speedup)} [${digits(row.low)}, ${digits(row.high)}]`;
      return h("tr", {}, name, size, h("td", { class: "fm-bench-plot" }, this.plot(row, axis), ...(first ? row.wholes : []).map((line) => h("div", { class: "fm-bench-whole" }, line))),
        h("td", {}, told), h("td", {}, String(row.n)),
        h("td", {}, row.seconds.join(" → "), row.floor ? h("div", { class: "fm-bench-floor" }, `at least ${row.floor}`) : null),
        h("td", { class: "fm-bench-verdict" }, row.verdict, row.unrest ? h("div", { class: "fm-bench-unrest" }, `unstable machine: ${row.unrest}`) : null));
    }));
    this.root.dataset.rows = String(rows.length);
    this.table.dataset.paints = String(++this.paints);
    this.enable();
  }

  plot(row, axis) {
    const at = (value) => axis.at(value);
    const parts = [s("line", { class: "fm-bench-one", x1: at(1), x2: at(1), y1: 0, y2: "100%" })];
    if (row.claim) {
      const [low, high] = row.claim;
      parts.push(s("line", { class: "fm-bench-claimed", x1: at(low), x2: at(high), y1: "50%", y2: "50%" }),
        ...row.claim.map((end) => s("line", { class: "fm-bench-end", x1: at(end), x2: at(end), y1: "20%", y2: "80%" })));
    }
    parts.push(s("line", { class: "fm-bench-interval", x1: at(row.low), x2: at(row.high), y1: "50%", y2: "50%" }),
      ...[row.low, row.high].map((end) => s("line", { class: "fm-bench-interval", x1: at(end), x2: at(end), y1: "32%", y2: "68%" })),
      s("circle", { class: row.unrest ? "fm-bench-mark fm-bench-hollow" : "fm-bench-mark", cx: at(row.speedup), cy: "50%", r: 4.5 }));
    const claim = row.claim ? `, claimed ${ratio(row.claim[0])} to ${ratio(row.claim[1])}` : "";
    return s("svg", { role: "img", "aria-label": `${ratio(row.speedup)} with its interval from ${ratio(row.low)} to ${ratio(row.high)}${claim}` }, ...parts);
  }

  swatch(hollow) {
    return s("svg", { class: "fm-bench-swatch", "aria-hidden": "true" },
      s("line", { class: "fm-bench-interval", x1: 2, x2: 30, y1: 7, y2: 7 }),
      s("circle", { class: hollow ? "fm-bench-mark fm-bench-hollow" : "fm-bench-mark", cx: 16, cy: 7, r: 4.5 }));
  }

  showStatus() {
    const { state, text, detail, share } = this.model.get("status"), cancel = this.status.querySelector(".fm-cancel");
    this.root.dataset.state = state;
    if (state === WORKING && cancel) {  // keep the button under the reader's pointer
      this.status.querySelector(".fm-status-text").textContent = text;
      const bar = this.status.querySelector("progress");
      if (share === null) bar.removeAttribute("value");
      else bar.value = share;
    } else if (state === WORKING) {
      this.status.replaceChildren(
        h("progress", { class: "fm-progress", max: "1", value: share ?? undefined, "aria-label": "Progress" }), h("span", { class: "fm-status-text" }, text),
        h("button", { type: "button", class: "fm-button fm-cancel", onclick: () => this.model.send({ kind: "cancel" }) }, "Cancel"));
    } else if (state === "error") {
      this.status.replaceChildren(h("div", { class: "fm-error", role: "alert" }, h("div", { class: "fm-error-text" }, text),
        h("details", {}, h("summary", {}, "Traceback"), h("pre", { tabindex: "0" }, detail))));
    } else {
      this.status.replaceChildren(h("span", { class: "fm-status-text" }, text || "Nothing has been measured yet: switch pairs on, then press Measure."));
    }
    this.enable();
  }
}
