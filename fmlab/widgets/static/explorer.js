// The Explorer: controls, the linked view, figures beside it, and the live model's answers.
const HEADS_MS = 250;  // hundreds of heads are drawn when the slider rests

class Explorer {
  constructor(model, root) {
    this.model = model;
    this.id = freshId("view");
    this.sent = this.settled = 0;
    this.choice = model.get("asked");
    this.root = root;
    root.classList.add("fmlab");
    keepKeys(root);
    this.build();
    this.view = new RetentionView(this.viewBox, (change) => this.moved(change), true);
    this.view.setTokens(model.get("tokens"));
    this.view.setStep(model.get("go").step, false);
    this.listen();
    this.showChoice();
    this.showFrame();
    this.showStatus();
    this.showAnswers();
    this.showReasons();
  }

  send(kind, content = {}) {
    this.model.send({ kind, view: this.id, ...content });
  }

  build() {
    const about = this.model.get("about");
    const refresh = () => this.send("refresh");
    this.pickers = ["a", "b"].map((side) => new PolicyPicker(side, side === "b", (choice) => this.choose({ [side]: choice }), refresh));
    this.budget = new BudgetControl((budget) => this.choose({ budget }));
    const pick = (name, words) => {
      const select = h("select", { onchange: () => this.choose({ [name]: select.value === NOTHING ? null : Number(select.value) }) });
      this[name] = select;
      return labelled(words, select);
    };
    this.oracle = h("input", { type: "checkbox", class: "fm-oracle", onchange: () => this.choose({ oracle: this.oracle.checked }) });
    const optimum = labelled("Optimum", this.oracle, null, "The exact best that any run could have kept at this budget, in hindsight; it may take seconds");
    const heads = h("div", { class: "fm-heads" }, pick("layer", "Layer"), pick("head", "Head"), pick("prefill", "Prefill"));
    this.budget.element.append(optimum);
    this.status = h("div", { class: "fm-status", role: "status" });
    this.viewBox = h("div", { class: "fm-view" });
    this.figures = h("div", { class: "fm-figures" });
    this.heads = new HeadMap((layer, head) => this.choose({ layer, head }));
    this.reasons = new Reasons((token) => this.explain(token));
    this.root.append(
      h("div", { class: "fm-header" },
        h("div", {}, h("div", { class: "fm-title", role: "heading", "aria-level": "2" }, "What the memory keeps"),
          h("div", { class: "fm-subtitle" }, about.caption)),
        h("div", { class: "fm-source" }, about.source)),
      h("div", { class: "fm-controls" }, this.pickers[0].element, this.pickers[1].element, this.budget.element, heads),
      this.status, this.viewBox,
      h("div", { class: "fm-below fm-insight" }, this.heads.element, this.reasons.element),
      h("div", { class: "fm-below" }, this.figures, this.buildAsk()),
      this.buildCode(),
    );
  }

  buildAsk() {
    const ask = () => this.askButton.disabled || this.send("ask", { question: this.question.value.trim() || this.question.placeholder });
    this.question = h("input", {
      type: "text", class: "fm-question", placeholder: this.model.get("about").question, "aria-label": "Question to the model",
      onkeydown: (event) => {
        if (event.key === "Enter" && !event.isComposing) ask();
      },
    });
    this.askButton = h("button", { type: "button", class: "fm-button fm-ask-button", onclick: ask }, "Ask");
    this.answers = h("div", { class: "fm-answers", "aria-live": "polite" });
    const form = h("div", { class: "fm-ask-form" }, this.question, this.askButton);
    return h("section", { class: "fm-ask", "aria-label": "Ask the model" },
      h("div", { class: "fm-section-title" }, "Ask the model about this text"), form,
      h("div", { class: "fm-hint" }, this.model.get("about").hint),
      this.answers);
  }

  buildCode() {
    this.code = h("textarea", { class: "fm-code", readonly: true, spellcheck: "false", "aria-label": "Code of what is on the screen" });
    this.codeBox = h("div", { class: "fm-code-box", hidden: true }, this.code);
    this.copied = h("span", { class: "fm-copied", role: "status" });
    const copy = h("button", { type: "button", class: "fm-button fm-copy", onclick: () => this.copy() }, "Copy as code");
    return h("div", { class: "fm-footer" }, h("div", { class: "fm-footer-bar" }, copy, this.copied), this.codeBox);
  }

  showCode() {
    this.code.value = this.model.get("code");
    this.code.rows = this.code.value.split("\n").length;
  }

  copy() {
    this.codeBox.hidden = false;
    this.showCode();
    const byHand = () => {
      this.code.select();
      this.copied.textContent = "Selected: copy it with Ctrl+C or Cmd+C.";
    };
    if (!navigator.clipboard) return byHand();  // browsers offer it on https and localhost only
    navigator.clipboard.writeText(this.code.value).then(() => { this.copied.textContent = "Copied; paste it into a cell."; }, byHand);
  }

  listen() {
    const handlers = {
      "change:catalogue": () => this.showChoice(), "change:frame": () => this.frameSoon(), "change:data": () => this.frameSoon(), "change:figures": () => this.showFigures(), "change:heads": () => this.showHeads(), "change:reasons": () => this.showReasons(), "change:status": () => this.showStatus(),
      "change:answers": () => this.showAnswers(), "change:code": () => this.showCode(),
      "change:acknowledged": () => this.settle(),
      "change:asked": () => this.adopt(),
      "change:go": () => this.view.setStep(this.model.get("go").step, false),
    };
    for (const [name, handler] of Object.entries(handlers)) this.model.on(name, handler);
    this.forget = () => Object.entries(handlers).forEach(([name, handler]) => this.model.off(name, handler));
  }

  // The kernel's choice, taken over unless the reader has moved on in the meantime.
  adopt() {
    if (this.waiting || this.sent !== this.settled) return;
    this.choice = this.model.get("asked");
    this.showChoice();
  }

  choose(change) {
    this.choice = { ...this.choice, ...change };
    if (this.sent === this.settled) this.request();
    else this.waiting = true;
  }

  // One request at a time, always the newest: a dragged slider never queues up work in the kernel.
  request() {
    this.waiting = false;
    this.sent += 1;
    const mine = this.sent;
    this.send("choose", { seq: mine, choice: this.choice });
    this.patience = setTimeout(() => {
      const words = h("span", { class: "fm-status-text" }, "The kernel is busy with a cell; the picture follows when it is free.");
      if (this.settled < mine) this.status.replaceChildren(words);
    }, 600);
  }

  settle() {
    const { view, seq } = this.model.get("acknowledged");
    if (view === this.id) this.finish(seq);
    else this.adopt();
  }

  finish(seq) {
    clearTimeout(this.patience);
    this.showStatus();
    this.settled = Math.max(this.settled, seq);
    if (this.settled !== this.sent) return;
    if (this.waiting) this.request();
    else this.adopt();
  }

  moved(change) {
    if ("mode" in change) this.choose({ mode: change.mode });
    if ("explain" in change) this.explain(change.explain);
    if ("step" in change) {
      clearTimeout(this.stepTimer);
      this.stepTimer = setTimeout(() => this.send("step", { step: change.step }), 200);
    }
  }

  explain(token) {
    if (token === null && (this.model.get("reasons").token ?? null) === null) return;
    this.send("explain", { token });
  }

  // Once for a choice and its figures.
  showHeads() {
    clearTimeout(this.headsTimer);
    this.headsTimer = setTimeout(() => this.heads.show(this.model.get("heads"), this.choice), HEADS_MS);
  }

  showReasons() {
    const reasons = this.model.get("reasons"), token = reasons.token ?? null;
    this.reasons.show(reasons, this.model.get("tokens"));
    if (token !== null && token !== this.explained && token !== this.view.pinned) this.view.pin(token);  // asked for from Python
    this.explained = token;
  }

  showChoice() {
    const about = this.model.get("about"), catalogue = this.model.get("catalogue"), { choice } = this;
    this.pickers[0].show(catalogue, choice.a);
    this.pickers[1].show(catalogue, choice.b);
    this.budget.show(about.budgets, choice.budget, about.tokens);
    const chosen = (value) => (value === null ? NOTHING : String(value));
    options(this.layer, about.layers, chosen(choice.layer));
    options(this.head, about.heads, chosen(choice.head));
    const prefills = about.prefills.some(([value]) => value === String(choice.prefill))
      ? about.prefills : [...about.prefills, [String(choice.prefill), `first ${choice.prefill} tokens as one call`]];
    options(this.prefill, prefills, String(choice.prefill));
    this.oracle.checked = choice.oracle;
    this.showHeads();
    this.view?.setMode(choice.mode);
  }

  showFrame() {
    const frame = this.model.get("frame");
    if (!frame.runs) return;
    const data = this.model.get("data");
    const words = frame.solving ? "The optimum at this budget is being computed; its map and text will appear here." : "";
    this.view.setRuns(frame.runs.map((header) => new Run(header, data)), frame.optimum ? new Run(frame.optimum, data) : null, words);
    this.showFigures();
  }

  // Headers and bytes arrive together but are told apart; draw once, when both are in.
  frameSoon() {
    if (this.drawing) return;
    this.drawing = true;
    queueMicrotask(() => {
      this.drawing = false;
      this.showFrame();
    });
  }

  showFigures() {
    const figures = this.model.get("figures");
    if (figures.rows) this.figures.replaceChildren(figureTable(figures));
  }

  showStatus() {
    const { state, text, detail, share } = this.model.get("status");
    this.root.dataset.state = state;
    this.viewBox.setAttribute("aria-busy", state === "busy");
    this.askButton.disabled = state === "asking";
    const parts = [], working = ["busy", "asking", "solving"].includes(state);
    if (working) {
      parts.push(h("progress", { class: "fm-progress", max: "1", value: share ?? undefined, "aria-label": "Progress" }), h("span", { class: "fm-status-text" }, text),
        h("button", { type: "button", class: "fm-button fm-cancel", onclick: () => this.send("cancel") }, "Cancel"));
    } else if (state === "error") {
      parts.push(h("div", { class: "fm-error", role: "alert" }, h("div", { class: "fm-error-text" }, text),
        detail ? h("details", {}, h("summary", {}, "Traceback"), h("pre", { tabindex: "0" }, detail)) : null));
    } else {
      parts.push(h("span", { class: "fm-status-text" }, text));
    }
    if (working && this.status.querySelector(".fm-cancel")) {  // keep the button under the reader's pointer
      this.status.querySelector(".fm-status-text").textContent = text;
      const bar = this.status.querySelector("progress");
      if (share === null || share === undefined) bar.removeAttribute("value");
      else bar.value = share;
    } else {
      this.status.replaceChildren(...parts);
    }
  }

  showAnswers() {
    const { question, rows } = this.model.get("answers");
    if (!question) return;
    this.answers.replaceChildren(h("div", { class: "fm-asked" }, question), ...rows.map((row) =>
      h("div", { class: "fm-answer" },
        h("div", { class: "fm-answer-who" }, row.side ? h("span", { class: `fm-badge fm-badge-${row.side}` }, row.side.toUpperCase()) : null, " ", row.label),
        h("div", { class: "fm-answer-text" }, row.text || "…"))));
  }

  close() {
    this.view.stop();
    clearTimeout(this.stepTimer);
    clearTimeout(this.patience);
    clearTimeout(this.headsTimer);
    this.forget();
  }
}
