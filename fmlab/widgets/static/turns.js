// The turns of a conversation under two memories, side by side; what is known of a budget repaints without the kernel.
const SIDES = ["a", "b"];
const OWN = "\u0000own";
const RESTING_CHOICE_MS = 120;

function written({ a, b, stop, question, aware }) {
  return JSON.stringify([a, b, stop, question, aware]);
}

class TurnColumn {
  constructor(side, turns, scrolled) {
    this.side = side;
    this.name = h("span", {});
    this.figures = h("div", { class: "fm-turn-figures" });
    this.error = h("div", { class: "fm-error", role: "alert", hidden: true });
    this.added = h("div", { class: "fm-turn-added", hidden: true });
    this.turns = turns.map(([role, text]) => {
      const said = h("span", { class: "fm-turn-text" });
      said.textContent = text;
      const mark = h("span", { class: "fm-turn-mark", hidden: true }, "evidence"), fate = h("span", { class: "fm-turn-fate" });
      return { said, mark, fate, node: h("div", { class: "fm-turn", role: "listitem" }, h("div", { class: "fm-turn-who" }, role, mark, fate), said) };
    });
    this.body = h("div", { class: "fm-turns", tabindex: "0", role: "list", "data-side": side, onscroll: () => scrolled(this) },
      ...this.turns.map((turn) => turn.node));
    this.element = h("section", { class: "fm-turn-column", "data-side": side },
      h("div", { class: "fm-text-title" }, h("span", { class: `fm-badge fm-badge-${side}` }, side.toUpperCase()), " ", this.name),
      this.figures, this.error, this.added, this.body);
  }

  show(label, kept, evidence, error) {
    this.name.textContent = label;
    this.body.setAttribute("aria-label", `Turns under memory ${this.side.toUpperCase()}, ${label}`);
    this.error.hidden = !error;
    if (error) this.error.textContent = error.text;
    this.element.dataset.state = error ? "error" : kept ? "ready" : "busy";
    this.element.setAttribute("aria-busy", String(!kept && !error));
    if (!kept) {
      this.figures.textContent = error ? "nothing is selected" : "choosing the turns …";
      if (error) { // what another budget or question had kept is no longer true
        for (const { node, fate } of this.turns) {
          node.classList.add("fm-turn-gone");
          fate.textContent = "";
        }
        this.added.hidden = true;
      }
      return;
    }
    const held = new Set(kept.places), said = new Set(kept.turns), found = evidence.filter((turn) => said.has(turn)).length;
    this.turns.forEach(({ node, fate }, place) => {
      const there = held.has(place);
      node.classList.toggle("fm-turn-gone", !there);
      fate.textContent = there ? "" : "dropped";
    });
    this.added.hidden = !kept.added.length;
    this.added.replaceChildren(...kept.added.map(([role, text]) => h("div", {}, `${role}: ${text}`)));
    const parts = [
      `${kept.tokens.toLocaleString("en")} of ${count(kept.budget, "token")}${kept.tokens > kept.budget ? " (over the budget)" : ""}`,
      `${held.size} of ${count(this.turns.length, "turn")}`,
      kept.aware ? "query-aware: it reads the question" : "query-blind",
    ];
    if (evidence.length) parts.push(`evidence: ${found} of ${evidence.length} kept`);
    this.figures.textContent = parts.join(" · ");
  }

  markEvidence(places) {
    this.turns.forEach(({ node, mark }, place) => {
      node.classList.toggle("fm-turn-evidence", places.has(place));
      mark.hidden = !places.has(place);
    });
  }

  reveal(place) {
    this.body.scrollTop = Math.max(0, this.turns[place].node.offsetTop - 40);
  }
}

class TurnsView {
  constructor(model, root) {
    this.model = model;
    this.root = root;
    this.about = model.get("about");
    this.choice = { ...model.get("choice") };
    this.own = "";
    this.paints = 0;
    root.classList.add("fmlab");
    keepKeys(root);
    this.build();
    this.listen();
    this.showChoice();
    this.showAnswers();
    this.showStatus();
  }

  build() {
    const { about } = this;
    const memory = (side) => h("select", {
      class: `fm-memory fm-memory-${side}`, "aria-label": `Memory ${side.toUpperCase()}`, onchange: (event) => this.choose({ [side]: event.target.value }),
    });
    this.memories = Object.fromEntries(SIDES.map((side) => [side, memory(side)]));
    this.budget = h("input", {
      type: "range", class: "fm-budget", min: "1", max: String(about.budgets.length), step: "1", "aria-label": "Budget, as a share of the tokens",
      oninput: () => this.choose({ stop: Number(this.budget.value) }),
    });
    this.share = h("output", { class: "fm-value" });
    this.question = h("select", { class: "fm-asked-question", "aria-label": "Question", onchange: () => this.pickQuestion() });
    this.typed = h("input", {
      type: "text", class: "fm-question", placeholder: "A question in your own words, then Enter", "aria-label": "Question in your own words",
      onchange: () => this.choose({ question: this.typed.value.trim() }),
    });
    this.aware = h("input", { type: "checkbox", class: "fm-aware", onchange: () => this.choose({ aware: this.aware.checked }) });
    this.answer = h("button", { type: "button", class: "fm-button fm-ask-button", onclick: () => this.ask() }, "Answer");
    this.status = h("div", { class: "fm-status", role: "status" });
    this.answers = h("div", { class: "fm-stage fm-turn-answers", "aria-live": "polite" });
    this.columns = Object.fromEntries(SIDES.map((side) => [side, new TurnColumn(side, about.turns, (from) => this.scrolled(from))]));
    this.stage = h("div", { class: "fm-stage", "data-layout": "turns" }, ...SIDES.map((side) => this.columns[side].element));
    const named = (side) => h("div", { class: "fm-field" }, h("span", { class: `fm-badge fm-badge-${side}` }, side.toUpperCase()), this.memories[side]);
    this.root.append(
      h("div", { class: "fm-header" }, h("div", {},
        h("div", { class: "fm-title", role: "heading", "aria-level": "2" }, "Which turns survive"),
        h("div", { class: "fm-subtitle" }, "Two memories keep what they hold worth it within the budget. What is struck through is not in the prompt; the budget holds how a prompt begins, too; the question comes on top."))),
      h("div", { class: "fm-controls" }, named("a"), named("b"),
        labelled("Budget", this.budget, this.share),
        h("div", { class: "fm-field" }, this.aware, this.awareLabel()),
        h("div", { class: "fm-field fm-turn-ask" }, h("span", { class: "fm-label" }, "Question"), this.question, this.typed, this.answer)),
      this.status, this.answers, this.stage,
    );
  }

  awareLabel() {
    this.aware.id = freshId("aware");
    return h("label", { for: this.aware.id }, "The memory may read the question before it chooses (query-aware)");
  }

  listen() {
    const handlers = {
      "change:choice": () => this.adopt(), "change:kept_a": () => this.show("a"), "change:kept_b": () => this.show("b"),
      "change:answers": () => this.showAnswers(), "change:status": () => this.showStatus(),
    };
    for (const [name, handler] of Object.entries(handlers)) this.model.on(name, handler);
    this.close = () => {
      clearTimeout(this.later);
      Object.entries(handlers).forEach(([name, handler]) => this.model.off(name, handler));
    };
  }

  // The kernel's choice, unless the reader has moved on since.
  adopt() {
    const told = this.model.get("choice");
    if (this.outstanding && written(told) !== this.outstanding) return;
    this.outstanding = null;
    if (this.later) return;
    const asked = told.question !== this.choice.question;
    this.choice = { ...told };
    this.showChoice(asked);
  }

  pickQuestion() {
    const own = this.question.value === OWN;
    this.writing = own;
    this.choose({ question: own ? this.typed.value.trim() : this.question.value });
    if (own) this.typed.focus();
  }

  // Paints what is known at once; the kernel hears of it when the slider rests.
  choose(change) {
    this.choice = { ...this.choice, ...change };
    this.showChoice("question" in change);
    clearTimeout(this.later);
    this.later = setTimeout(() => this.tell(), RESTING_CHOICE_MS);
  }

  tell() {
    clearTimeout(this.later);
    this.later = null;
    if (written(this.choice) === written(this.model.get("choice")) && !this.outstanding) return;
    this.outstanding = written(this.choice);
    this.model.send({ kind: "choose", choice: this.choice });
  }

  ask() {
    this.tell();
    this.model.send({ kind: "ask" });
  }

  showChoice(asked = true) {
    const { about, choice } = this, known = about.questions.find((question) => question.text === choice.question);
    for (const side of SIDES) options(this.memories[side], about.memories.map((label) => [label, label]), choice[side]);
    this.writing = !known && (this.writing || choice.question !== "");
    options(this.question, [["", "none"], ...about.questions.map(({ text, kind }) => [text, `${text} (${kind})`]), [OWN, "in your own words …"]],
      this.writing ? OWN : choice.question);
    this.typed.hidden = !this.writing;
    if (this.writing && document.activeElement !== this.typed) this.typed.value = choice.question;
    this.aware.checked = choice.aware;
    this.aware.disabled = choice.question === "";
    this.budget.value = String(choice.stop);
    const budget = about.budgets[choice.stop - 1], percent = Math.round((1000 * choice.stop) / about.budgets.length) / 10;
    this.share.textContent = `${percent}%: ${budget.toLocaleString("en")} of ${about.total.toLocaleString("en")} tokens`;
    this.budget.setAttribute("aria-valuetext", this.share.textContent);
    this.evidence = known ? known.evidence : [];
    const places = new Set(about.turns.flatMap(([, , sources], place) => (sources.some((turn) => this.evidence.includes(turn)) ? [place] : [])));
    for (const side of SIDES) {
      this.columns[side].markEvidence(places);
      this.show(side);
    }
    if (asked && places.size) this.columns.a.reveal(Math.min(...places));
    this.showStatus();
  }

  show(side) {
    const { choice } = this, told = this.model.get(`kept_${side}`), query = choice.aware && choice.question ? choice.question : null;
    const mine = told.label === choice[side] && (told.query ?? null) === query;
    this.columns[side].show(choice[side], mine ? told.stops[choice.stop] : undefined, this.evidence, mine && !told.stops[choice.stop] ? told.error : null);
    this.stage.dataset.paints = String(++this.paints);
  }

  // Two columns scroll as one.
  scrolled(from) {
    for (const side of SIDES) {
      const { body } = this.columns[side];
      if (body !== from.body && body.scrollTop !== from.body.scrollTop) body.scrollTop = from.body.scrollTop;
    }
  }

  showStatus() {
    const { state, text, detail } = this.model.get("status"), { model } = this.about;
    const asking = state === "asking";
    this.answer.disabled = asking || !model || !this.choice.question;
    const idle = model ? "" : "No model was given, so nobody answers: Turns(..., lm=lm).";
    if (state === "error") {
      this.status.replaceChildren(h("div", { class: "fm-error", role: "alert" }, h("div", { class: "fm-error-text" }, text),
        h("details", {}, h("summary", {}, "Traceback"), h("pre", { tabindex: "0" }, detail))));
    } else {
      this.status.replaceChildren(...(asking ? [h("progress", { class: "fm-progress", "aria-label": "Progress" })] : []),
        h("span", { class: "fm-status-text" }, text || idle));
    }
  }

  showAnswers() {
    const { question, expected, rows } = this.model.get("answers");
    if (!rows) return;
    const verdict = { true: "matches the answer", false: "does not match the answer" };
    this.answers.replaceChildren(
      h("div", { class: "fm-asked fm-turn-asked" }, question, expected === null ? " (no answer is on record)" : ` Answer on record: ${expected}`),
      ...rows.map(({ side, label, budget, prompt, text, right }) => h("div", { class: "fm-answer" },
        h("div", { class: "fm-answer-who" }, h("span", { class: `fm-badge fm-badge-${side}` }, side.toUpperCase()),
          ` ${label}, budget ${budget.toLocaleString("en")}, prompt of ${count(prompt, "token")}`),
        h("div", { class: "fm-answer-text" }, text || "(nothing)"),
        right === null ? null : h("div", { class: "fm-verdict", "data-right": String(right) }, `${right ? "✓" : "✗"} ${verdict[right]}`))));
  }
}
