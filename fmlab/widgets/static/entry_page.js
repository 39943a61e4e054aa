// The linked view on a page of its own: no kernel, every run is in the page.
function openPage(root, payload, bytes) {
  const { runs, tokens } = payload, view = new DataView(bytes.buffer);
  const decoded = runs.map((entry) => entry.headers.map((header) => new Run(header, view))[0]);
  const best = new Map(payload.optimum.map((entry) => [entry.budget, { run: new Run(entry.headers[0], view), figures: entry.figures }]));
  const policies = [...new Set(runs.map((entry) => entry.policy))];
  const budgets = [...new Set(runs.map((entry) => entry.budget))].sort((a, b) => a - b);
  const state = { a: payload.start.a, b: payload.start.b, budget: payload.start.budget, oracle: payload.start.oracle };
  const find = (policy) => {
    const of = runs.map((entry, k) => k).filter((k) => runs[k].policy === policy);
    return of.reduce((best, k) => (Math.abs(runs[k].budget - state.budget) < Math.abs(runs[best].budget - state.budget) ? k : best));
  };
  const pick = (side, optional) => {
    const select = h("select", { class: "fm-policy", "aria-label": `Policy ${side.toUpperCase()}`,
      onchange: () => { state[side] = select.value || null; draw(); } });
    options(select, [...(optional ? [[NOTHING, "compare with …"]] : []), ...policies.map((p) => [p, p])], state[side] ?? NOTHING);
    return h("div", { class: "fm-picker" }, h("span", { class: `fm-badge fm-badge-${side}`, "aria-hidden": "true" }, side.toUpperCase()), select);
  };
  const slider = h("input", { type: "range", class: "fm-budget", min: "0", max: budgets.length - 1, "aria-label": "Budget",
    oninput: () => { state.budget = budgets[Number(slider.value)]; draw(); } });
  slider.value = budgets.indexOf(state.budget);
  const shown = h("output", { class: "fm-value" });
  const oracle = h("input", { type: "checkbox", class: "fm-oracle", onchange: () => { state.oracle = oracle.checked; draw(); } });
  oracle.checked = state.oracle;
  const controls = h("div", { class: "fm-controls" }, pick("a", false), ...(policies.length > 1 ? [pick("b", true)] : []),
    h("div", { class: "fm-field fm-budget-field", hidden: budgets.length < 2 && !best.size }, h("span", { class: "fm-label" }, "Budget"), slider, shown,
    best.size ? labelled("Optimum", oracle, null, "The exact best that any run could have kept at this budget, in hindsight") : null));
  const box = h("div", { class: "fm-view" }), figures = h("div", { class: "fm-figures" });
  root.append(
    h("div", { class: "fm-header" },
      h("div", {}, h("div", { class: "fm-title", role: "heading", "aria-level": "2" }, payload.title), h("div", { class: "fm-subtitle" }, payload.caption)),
      h("div", { class: "fm-source" }, payload.source)),
    controls, box, h("div", { class: "fm-below" }, figures));
  const linked = new RetentionView(box);
  linked.setTokens(tokens);
  linked.setMode(payload.start.mode);
  linked.setStep(payload.start.step, false);
  function draw() {
    const chosen = [find(state.a), ...(state.b ? [find(state.b)] : [])];
    shown.textContent = `${state.budget.toLocaleString("en")} of ${tokens.length.toLocaleString("en")} tokens a head`;
    const found = state.oracle ? best.get(runs[chosen[0]].budget) : null;
    oracle.disabled = !best.has(runs[chosen[0]].budget);
    linked.setRuns(chosen.map((k) => decoded[k]), found?.run);
    const names = Object.keys(runs[chosen[0]].figures);
    const tabled = [...chosen.map((k, at) => ({ side: "ab"[at], label: runs[k].policy, figures: runs[k].figures })),
      ...(found ? [{ side: "o", label: "optimum", figures: found.figures }] : [])];
    figures.replaceChildren(...(names.length ? [figureTable({
      caption: payload.figuresCaption,
      columns: tabled,
      rows: names.map((name) => ({ name, help: "", cells: tabled.map((run) => ({ text: run.figures[name] ?? "", share: null })) })),
    })] : []));
  }
  draw();
}

for (const root of document.querySelectorAll(".fmlab[data-fmlab-page]")) {
  if (root.dataset.opened) continue;  // several fragments in one page carry this module once each
  root.dataset.opened = "yes";
  const payload = JSON.parse(root.querySelector("script[data-fmlab-payload]").textContent);
  openPage(root, payload, Uint8Array.from(atob(payload.data), (c) => c.charCodeAt(0)));
}
