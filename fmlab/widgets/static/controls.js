// The controls: two policies with their settings, the budget, and which heads to look at.
const NOTHING = "";
const HINTS = { literal: "a Python literal, such as (1, 2) or None", policy: "a policy, such as SnapKV(window=16)" };

function labelled(words, control, extra = null, title = null) {
  const id = control.id || (control.id = freshId("control"));
  return h("div", { class: "fm-field", title }, h("label", { for: id, class: "fm-label" }, words), control, extra);
}

function options(select, entries, chosen) {
  const wanted = JSON.stringify(entries);
  if (select.entries !== wanted) {
    select.entries = wanted;
    select.replaceChildren(...entries.map(([value, words]) => h("option", { value }, words)));
  }
  select.value = chosen;
}

// One setting of a policy, as its dataclass field declares it.
function settingControl(field, value, changed) {
  if (field.kind === "bool") {
    const box = h("input", { type: "checkbox", onchange: () => changed(box.checked) });
    box.checked = value;
    return labelled(field.name, box);
  }
  if (field.kind === "options") {
    const select = h("select", { onchange: () => changed(field.options[Number(select.value)]) });
    options(select, field.options.map((option, k) => [String(k), String(option)]), String(field.options.indexOf(value)));
    return labelled(field.name, select);
  }
  if (field.kind === "int" || field.kind === "float") {
    const ranged = field.max !== null && field.kind === "float";
    const number = () => {
      if (input.value.trim() === "" || !input.checkValidity()) return input.reportValidity?.();
      if (shown) shown.textContent = input.value;
      changed(Number(input.value));
    };
    const input = h("input", {
      type: ranged ? "range" : "number", min: field.min, max: field.max, step: field.step ?? "any", value: String(value),
      class: ranged ? "fm-small-range" : "fm-number", oninput: number,
    });
    const shown = ranged ? h("output", { class: "fm-value" }, String(value)) : null;
    return labelled(field.name, input, shown);
  }
  const input = h("input", { type: "text", class: "fm-text-input", value: String(value ?? ""), spellcheck: "false", onchange: () => changed(input.value) });
  return labelled(field.name, input, null, HINTS[field.kind] ?? null);
}

// The picker of one policy: a list of every policy alive in the kernel, and the settings of the chosen one.
class PolicyPicker {
  constructor(side, optional, changed, refresh) {
    this.side = side;
    this.optional = optional;
    this.changed = changed;
    this.select = h("select", {
      class: "fm-policy", onchange: () => this.choose(this.select.value), onfocus: refresh, onpointerdown: refresh,
      "aria-label": optional ? "Policy B, to compare with" : "Policy A",
    });
    this.settings = h("div", { class: "fm-settings" });
    this.about = h("div", { class: "fm-about-policy" });
    this.element = h("div", { class: `fm-picker fm-picker-${side}` },
      h("span", { class: `fm-badge fm-badge-${side}`, "aria-hidden": "true" }, side.toUpperCase()),
      this.select, this.settings, this.about);
  }

  show(catalogue, choice) {
    this.catalogue = catalogue;
    this.choice = choice;
    const entries = catalogue.map((policy) => [policy.key, policy.name]);
    options(this.select, this.optional ? [[NOTHING, "compare with …"], ...entries] : entries, choice ? choice.key : NOTHING);
    const policy = choice && catalogue.find((known) => known.key === choice.key);
    this.about.textContent = this.about.title = policy ? policy.summary.replaceAll("`", "") : "";
    const wanted = JSON.stringify([policy?.key, policy?.fields, choice?.values]);
    if (this.drawn === wanted || (this.settings.contains(document.activeElement) && this.drawnKey === policy?.key)) return;
    this.drawn = wanted;  // settings in the reader's hand are not rebuilt under the cursor
    this.drawnKey = policy?.key;
    this.settings.replaceChildren(...(policy ? policy.fields : []).map((field) =>
      settingControl(field, choice.values[field.name], (value) => {
        this.choice = { ...this.choice, values: { ...this.choice.values, [field.name]: value } };
        this.changed(this.choice);
      })));
  }

  choose(key) {
    const policy = this.catalogue.find((known) => known.key === key);
    const choice = policy ? { key, values: Object.fromEntries(policy.fields.map((field) => [field.name, field.value])) } : null;
    this.show(this.catalogue, choice);
    this.changed(choice);
  }
}

// A slider over the budgets at hand, with a box for any other.
class BudgetControl {
  constructor(changed) {
    this.changed = changed;
    this.slider = h("input", { type: "range", class: "fm-budget", min: "0", step: "1", "aria-label": "Budget",
      oninput: () => this.move(this.budgets[Number(this.slider.value)]) });
    this.box = h("input", { type: "number", class: "fm-number fm-budget-box", min: "1", step: "1", "aria-label": "Budget in entries a KV head",
      onchange: () => this.box.checkValidity() && this.box.value && this.move(Number(this.box.value)) });
    this.share = h("span", { class: "fm-value" });
    this.element = h("div", { class: "fm-field fm-budget-field" }, h("span", { class: "fm-label" }, "Budget"),
      this.slider, this.box, this.share);
  }

  show(budgets, budget, tokens) {
    this.budgets = budgets;
    this.tokens = tokens;
    this.slider.max = budgets.length - 1;
    this.box.max = tokens;
    this.draw(budget);
  }

  draw(budget) {
    const nearest = this.budgets.reduce((best, value, k) => (Math.abs(value - budget) < Math.abs(this.budgets[best] - budget) ? k : best), 0);
    this.slider.value = nearest;
    this.slider.setAttribute("aria-valuetext", `${budget} of ${this.tokens} tokens`);
    if (document.activeElement !== this.box) this.box.value = budget;
    this.share.textContent = `of ${this.tokens.toLocaleString("en")} tokens a head`;
  }

  move(budget) {
    this.draw(budget);
    this.changed(budget);
  }
}
