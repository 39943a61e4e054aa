// Mass recall over density: the Oracle's line, the choice in view, and what was measured, which is a table, too.
const CHART = { wide: 460, tall: 300, left: 46, right: 22, top: 12, bottom: 42 };
const SHARES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];
const percents = (value, digits = 1) => `${(value * 100).toFixed(digits)}%`;
const three = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });

function milliseconds(seconds) {
  return seconds >= 1 ? `${three(seconds)} s` : `${three(seconds * 1000)} ms`;
}

class Frontier {
  constructor() {
    this.chart = s("svg", { class: "fm-sparse-chart", viewBox: `0 0 ${CHART.wide} ${CHART.tall}`, role: "img" });
    this.body = h("tbody");
    const columns = ["Pattern", "Layer", "Density", "Mass recall", "Output error", "Speed-up, 95% interval", "Rounds", "Dense → sparse", "Choosing on top", "Kernel, and why"];
    this.table = h("div", { class: "fm-figures fm-sparse-table", hidden: true }, h("table", {},
      h("caption", {}, "Measured on all heads of the layer, against dense causal attention; recall and error are means over the heads"),
      h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)))), this.body));
    this.element = h("div", { class: "fm-sparse-frontier" },
      h("div", { class: "fm-section-title" }, "What all heads of the layer keep, by density"), this.chart,
      h("div", { class: "fm-legend" },
        this.key("Oracle: no blocks of this density keep more", s("line", { class: "fm-sparse-bound", x1: 1, x2: 31, y1: 7, y2: 7 })),
        this.key("in view", s("circle", { class: "fm-sparse-now", cx: 16, cy: 7, r: 5 })),
        this.key("measured", s("circle", { class: "fm-sparse-point", cx: 16, cy: 7, r: 4 }))));
  }

  key(words, mark) {
    return h("span", { class: "fm-legend-item" }, s("svg", { class: "fm-sparse-swatch", "aria-hidden": "true" }, mark), words);
  }

  show(oracle, worth, points, layer) {
    const { wide, tall, left, right, top, bottom } = CHART, low = Math.log(Math.min(0.01, oracle[0][0]));
    const least = Math.min(0.9, Math.floor(10 * Math.min(...oracle.map(([, recall]) => recall), worth.all_recall, ...points.map((p) => p.mass_recall))) / 10);
    const x = (density) => left + (wide - left - right) * (1 - Math.log(density) / low), y = (recall) => top + (tall - top - bottom) * (1 - (recall - least) / (1 - least));
    const parts = [];
    for (const share of SHARES) {
      parts.push(s("line", { class: "fm-sparse-grid", x1: x(share), x2: x(share), y1: top, y2: tall - bottom }),
        s("text", { x: x(share), y: tall - bottom + 16, "text-anchor": "middle" }, percents(share, 0)));
    }
    const step = 1 - least > 0.55 ? 0.2 : 1 - least > 0.25 ? 0.1 : 0.05;
    for (let recall = 1; recall > least - 1e-9; recall -= step) {
      parts.push(s("line", { class: "fm-sparse-grid", x1: left, x2: wide - right, y1: y(recall), y2: y(recall) }),
        s("text", { x: left - 6, y: y(recall) + 4, "text-anchor": "end" }, percents(recall, 0)));
    }
    parts.push(s("text", { x: (left + wide - right) / 2, y: tall - 8, "text-anchor": "middle" }, "density: share of the causal pairs"),
      s("polyline", { class: "fm-sparse-bound", points: oracle.map(([d, r]) => `${x(d).toFixed(1)},${y(r).toFixed(1)}`).join(" ") }));
    for (const point of points.filter((p) => p.layer === layer)) {
      const mark = s("circle", { class: "fm-sparse-point", cx: x(point.density), cy: y(point.mass_recall), r: 4 });
      mark.append(s("title", {}, `${point.setting}: ${percents(point.density)} of the pairs, ${percents(point.mass_recall)} of the mass, ${three(point.speedup)} x`));
      parts.push(mark, s("text", { class: "fm-sparse-name", x: x(point.density), y: y(point.mass_recall) + 16, "text-anchor": x(point.density) > wide * 0.75 ? "end" : "middle" }, `${point.pattern} ${three(point.speedup)} x`));
    }
    parts.push(s("circle", { class: "fm-sparse-now", cx: x(worth.all_density), cy: y(worth.all_recall), r: 5.5 }));
    this.chart.replaceChildren(...parts);
    this.chart.setAttribute("aria-label", `Mass recall over density. In view: ${percents(worth.all_recall)} at ${percents(worth.all_density)}; the Oracle keeps ${percents(worth.oracle_recall)} there. ${count(points.length, "point")} measured.`);
    this.rows(points);
  }

  rows(points) {
    this.table.hidden = !points.length;
    const span = (point, name) => (point[`${name}_low`] === point[`${name}_low`] && point[`${name}_low`] !== null ? ` [${three(point[`${name}_low`])}, ${three(point[`${name}_high`])}]` : "");
    this.body.replaceChildren(...points.map((point) => h("tr", {}, h("th", { scope: "row" }, point.setting),
      ...[String(point.layer), percents(point.density), `${three(point.mass_recall)}${span(point, "mass_recall")}`, `${three(point.output_error)}${span(point, "output_error")}`,
        `${three(point.speedup)} x${span(point, "speedup")}`, String(point.speedup_n), `${milliseconds(point.dense_seconds)} → ${milliseconds(point.sparse_seconds)}`, milliseconds(point.choosing_seconds)].map((text) => h("td", {}, text)),
      h("td", { class: "fm-sparse-why" }, point.why, point.unrest ? h("div", { class: "fm-sparse-unrest" }, `unstable machine: ${point.unrest}`) : null))));
  }
}
