// The text itself: one element per token, shaded while it is held, struck through once it is gone.
const LEVELS = 4;
const SLICE = 512;
const RESTING_MS = 400;  // what lies out of sight waits until the slider rests

class TokenText {
  constructor(view) {
    this.view = view;
    this.spans = [];
    this.title = h("div", { class: "fm-text-title" });
    this.body = h("div", {
      class: "fm-text", tabindex: "0", role: "group",
      onpointerover: (event) => this.hover(event), onpointerleave: () => view.setHover(null),
      onclick: (event) => this.click(event), onkeydown: (event) => this.key(event), onscroll: () => this.scrolled(),
    });
    this.element = h("div", { class: "fm-text-box" }, this.title, this.body);
  }

  // The elements are made when the text is first seen: the second text may never be.
  setTokens(tokens) {
    this.tokens = tokens;
    this.spans = [];
    this.body.replaceChildren();
    this.source = null;
  }

  build() {
    const { tokens } = this;
    this.spans = tokens.map((token) => document.createElement("span"));
    this.spans.forEach((span, i) => {
      span.textContent = tokens[i];
      span.index = i;
    });
    this.body.replaceChildren(...this.spans);
    this.marked = this.now = null;
  }

  // title: what stands before the words "What step … sees"
  show(source, title) {
    this.source = source;
    if (!this.spans.length) this.build();
    this.at = h("span", {});
    this.title.replaceChildren(...title, this.at);
    this.body.dataset.side = source.side ?? "";
    this.body.setAttribute("aria-label", `Text, ${source.label}. Left and right move from token to token.`);
    this.update();
  }

  look(i, step) {
    if (i > step) return "fm-ahead";
    if (this.source.kind === "run") {
      const share = this.source.run.share(i, step);
      return share === 0 ? "fm-gone" : `fm-held fm-level-${Math.ceil(share * LEVELS)}`;
    }
    // over several heads a token is shown as what most of its heads do
    const { both, onlyA, onlyB } = this.source.pairing.shares(i, step);
    const most = Math.max(both, onlyA, onlyB, 1 - both - onlyA - onlyB);
    if (both === most) return "fm-both";
    if (onlyA === most) return "fm-only-a";
    return onlyB === most ? "fm-only-b" : "fm-gone";
  }

  update() {
    if (!this.source || this.element.hidden) return clearTimeout(this.later);
    this.at.textContent = `What step ${this.view.step.toLocaleString("en")} sees`;
    this.dress(...this.inSight());
    this.dressRest();
    this.mark();
  }

  // Gives the tokens from..to their looks; what has its look already is not touched.
  dress(from, to) {
    const { step } = this.view;
    for (let i = from; i < to; i++) {
      const look = this.look(i, step), span = this.spans[i];
      if (span.look === look) continue;
      span.className = span.look = look;
      if (span === this.marked) span.classList.add("fm-marked");
      if (span === this.now) span.classList.add("fm-now");
    }
  }

  // The tokens out of sight get theirs a little later, a slice at a time: restyling thousands would hold up the map.
  dressRest(from = 0) {
    clearTimeout(this.later);
    if (from >= this.spans.length) return;
    this.later = setTimeout(() => {
      this.dress(from, Math.min(from + SLICE, this.spans.length));
      this.dressRest(from + SLICE);
    }, from === 0 ? RESTING_MS : 10);
  }

  // First and last token of the lines that can be seen, found by bisection.
  inSight() {
    const top = this.body.scrollTop, bottom = top + this.body.clientHeight;
    const first = (line) => {
      let low = 0, high = this.spans.length;
      while (low < high) {
        const middle = (low + high) >> 1, span = this.spans[middle];
        if (span.offsetTop + span.offsetHeight < line) low = middle + 1;
        else high = middle;
      }
      return low;
    };
    return bottom === top ? [0, 0] : [first(top), Math.min(this.spans.length, first(bottom) + 40)];
  }

  mark() {
    if (this.element.hidden) return;
    const { token, step } = this.view;
    for (const [name, i] of [["marked", token], ["now", step]]) {
      const next = i === null ? null : this.spans[i] ?? null;
      if (this[name] === next) continue;
      this[name]?.classList.remove(`fm-${name}`);
      next?.classList.add(`fm-${name}`);
      this[name] = next;
    }
  }

  // Scrolls the text's own box, never the page.
  reveal(i) {
    const span = this.spans[i];
    if (!span) return;
    const top = span.offsetTop, bottom = top + span.offsetHeight;
    if (top < this.body.scrollTop || bottom > this.body.scrollTop + this.body.clientHeight) {
      this.body.scrollTop = top - this.body.clientHeight / 3;
    }
  }

  // Two texts side by side scroll as one.
  scrolled() {
    if (!this.source) return;
    this.dress(...this.inSight());
    for (const other of this.view.texts) {
      if (other !== this && !other.element.hidden && other.body.scrollTop !== this.body.scrollTop) other.body.scrollTop = this.body.scrollTop;
    }
  }

  hover(event) {
    if (event.target.index !== undefined) this.view.setHover(event.target.index, null, "text");
  }

  click(event) {
    if (event.target.index !== undefined) this.view.choose(event.target.index, "text");
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10 }[event.key];
    if (move !== undefined && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      this.view.pin(clamp((this.view.pinned ?? this.view.step) + move, 0, this.view.n - 1));
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.view.choose(this.view.token ?? this.view.step, "text");
    } else if (event.key === "Escape") {
      this.view.pin(null);
      this.view.explain(null);
    }
  }
}
