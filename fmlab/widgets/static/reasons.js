// Why the chosen token was evicted: a sentence a policy, and a row a head with the score beside the cut.
class Reasons {
  // asked(token) is called with null when the reader no longer wants to know.
  constructor(asked) {
    this.asked = asked;
    this.title = h("div", { class: "fm-section-title" }, "Why was it evicted?");
    this.body = h("div", { class: "fm-reason-body", "aria-live": "polite" });
    this.element = h("section", { class: "fm-reasons", "aria-label": "Why a token was evicted" },
      h("div", { class: "fm-section-bar" }, this.title), this.body);
  }

  show(reasons, tokens) {
    const { token, rows, busy, error, columns } = reasons;
    this.title.textContent = token === null || token === undefined ? "Why was it evicted?" : `Why was token ${token} ${quoted(tokens[token])} evicted?`;
    if (token === null || token === undefined) {
      this.body.replaceChildren(h("div", { class: "fm-hint" }, "Click a token in the text or the map, or press Enter on it: its score at the step at which it went, beside the cut, the lowest score that was kept."));
    } else if (error) {
      this.body.replaceChildren(h("div", { class: "fm-error", role: "alert" }, error));
    } else if (busy) {
      this.body.replaceChildren(h("div", { class: "fm-reason-busy" }, h("span", {}, busy),
        h("button", { type: "button", class: "fm-button", onclick: () => this.asked(null) }, "Cancel")));
    } else {
      this.body.replaceChildren(...(rows ?? []).map((row) => this.reason(row, columns)));
    }
  }

  reason({ side, label, summary, rows }, columns) {
    const cells = (tag, values, scope) => h("tr", {}, ...values.map((value) => h(tag, { scope }, value)));
    const table = rows.length > 1 ? h("div", { class: "fm-reason-table", tabindex: "0", role: "group", "aria-label": `${label}, head by head` },
      h("table", {}, h("thead", {}, cells("th", columns, "col")), h("tbody", {}, ...rows.map((row) => cells("td", row))))) : null;
    return h("div", { class: "fm-reason" },
      h("div", { class: "fm-reason-words" }, h("span", { class: `fm-badge fm-badge-${side}`, title: label }, side.toUpperCase()), " ", summary), table);
  }
}
