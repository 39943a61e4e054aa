// The true attention of a head, the chosen blocks clear and the others dimmed: a canvas, its axes, its pointer and keys.
const NEAREST = 12;  // tokens across, at the closest
const EDGE = 5;      // pixels of a block from which its border is drawn

function niceTicks(low, high, wanted) {
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(Math.max(raw, 1)));
  const stride = [1, 2, 5, 10].map((k) => k * power).find((step) => step >= raw) ?? power;
  const ticks = [];
  for (let at = Math.ceil(low / stride) * stride; at < high; at += stride) ticks.push(at);
  return ticks;
}

const mix = (from, to, share) => from.map((value, c) => Math.round(value + (to[c] - value) * share));
const packed = ([red, green, blue]) => (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;

// A map as the kernel sends it: a byte a pixel, 0 where nothing attends.
class Shades {
  constructor(about, bytes) {
    Object.assign(this, about);
    this.bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  holds({ i0, i1, j0, j1 }) {
    return this.rows > 0 && this.i0 <= i0 && i1 <= this.i1 && this.j0 <= j0 && j1 <= this.j1;
  }

  at(i, j) {
    return this.bytes[Math.floor((i - this.i0) / this.each) * this.columns + Math.floor((j - this.j0) / this.each)];
  }

  // The attention that a shade stands for, to 5%.
  weight(i, j) {
    const shade = this.at(i, j);
    return shade === 0 ? 0 : shade === 1 ? null : 10 ** (-5 * (1 - (shade - 1) / 254));
  }
}

class BlockMap {
  // hovered({i, j} or null), looked(frame) once a new part is in view, painted() after each painting
  constructor(root, tokens, block, { hovered, looked, painted }) {
    Object.assign(this, { tokens, block, hovered, looked, painted });
    this.palette = new Palette(root, ["empty", "gone", "a", "both", "mark", "ink"]);
    this.frame = { i0: 0, i1: tokens, j0: 0, j1: tokens };
    this.cursor = null;
    this.base = h("canvas", { class: "fm-base", "aria-hidden": "true" });
    this.over = h("canvas", {
      class: "fm-over", tabindex: "0", role: "application", "aria-roledescription": "map",
      onpointerdown: (event) => this.press(event), onpointermove: (event) => this.move(event), onpointerup: () => { this.dragged = null; },
      onpointerleave: () => this.dragged || this.point(null), onkeydown: (event) => this.key(event), onblur: () => this.point(null),
    });
    this.over.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.plot = h("div", { class: "fm-plot fm-sparse-plot" }, this.base, this.over);
    this.xAxis = h("div", { class: "fm-x-axis", "aria-hidden": "true" });
    this.yAxis = h("div", { class: "fm-y-axis", "aria-hidden": "true" });
    const icon = (kind, words, sign, onclick) => h("button", { type: "button", class: `fm-icon ${kind}`, "aria-label": words, title: words, onclick }, sign);
    this.tools = h("div", { class: "fm-zoom", role: "group", "aria-label": "Zoom" },
      icon("fm-out", "Zoom out", "−", () => this.zoom(2)), icon("fm-in", "Zoom in", "+", () => this.zoom(0.5)),
      icon("fm-whole", "Show all", "all", () => this.go({ i0: 0, i1: tokens, j0: 0, j1: tokens })));
    this.element = h("div", { class: "fm-map fm-sparse-map" }, this.yAxis, this.plot, this.xAxis);
    this.resized = new ResizeObserver(() => this.paint());
    this.resized.observe(this.plot);
  }

  // whole and tile: Shades; chosen: a byte a block
  show(whole, tile, chosen, label) {
    Object.assign(this, { whole, tile, chosen });
    this.over.setAttribute("aria-label", `Attention of queries, downwards, to keys, across. ${label}. Arrows move from block to block, plus and minus zoom, 0 shows all.`);
    this.paint();
  }

  isChosen(i, j) {
    return this.chosen[Math.floor(i / this.block) * this.whole.blocks + Math.floor(j / this.block)] === 1;
  }

  get source() {
    const { tile, whole, frame } = this;
    return tile && tile.each < whole.each && tile.holds(frame) ? tile : whole;
  }

  paint() {
    const ratio = window.devicePixelRatio || 1, W = Math.round(this.plot.clientWidth * ratio), H = Math.round(this.plot.clientHeight * ratio);
    if (!this.whole || W < 2 || H < 2) return;
    for (const canvas of [this.base, this.over]) {
      if (canvas.width !== W) canvas.width = W;
      if (canvas.height !== H) canvas.height = H;
    }
    const { frame, block, chosen, source, tokens } = this, blocks = this.whole.blocks, colours = this.palette.read();
    const clear = [mix(colours.empty, colours.a, 0.16), mix(colours.a, colours.ink, 0.35)];
    const dim = [mix(colours.empty, colours.gone, 0.45), mix(colours.empty, colours.both, 0.85)];
    const ramp = ([low, high]) => Uint32Array.from({ length: 256 }, (_, shade) => packed(mix(low, high, (Math.max(shade - 1, 0) / 254) ** 1.2)));
    const ramps = [ramp(dim), ramp(clear)], empty = packed(colours.empty);
    const context = this.base.getContext("2d"), image = context.createImageData(W, H), pixels = new Uint32Array(image.data.buffer);
    const place = (low, high, size, first) => {
      const token = Int32Array.from({ length: size }, (_, at) => Math.floor(low + ((at + 0.5) * (high - low)) / size));
      return { token, pixel: token.map((t) => Math.floor((t - first) / source.each)), of: token.map((t) => Math.floor(t / block)) };
    };
    const across = place(frame.j0, frame.j1, W, source.j0), down = place(frame.i0, frame.i1, H, source.i0);
    for (let y = 0, out = 0; y < H; y++) {
      const i = down.token[y], line = down.pixel[y] * source.columns, row = down.of[y] * blocks;
      for (let x = 0; x < W; x++, out++) {
        const j = across.token[x];
        if (i >= tokens || j > i) pixels[out] = empty;
        else {
          const shade = source.bytes[line + across.pixel[x]];
          pixels[out] = ramps[chosen[row + across.of[x]]][shade];
        }
      }
    }
    context.putImageData(image, 0, 0);
    this.borders(context, W, H, ratio, colours);
    this.axes();
    this.mark();
    this.painted();
  }

  // Lines between what is chosen and what is not.
  borders(context, W, H, ratio, colours) {
    const { frame, block, chosen } = this, blocks = this.whole.blocks, wide = W / (frame.j1 - frame.j0), high = H / (frame.i1 - frame.i0);
    if (wide * block < EDGE * ratio) return;
    const x = (at) => Math.round((at * block - frame.j0) * wide) - ratio / 2, y = (at) => Math.round((at * block - frame.i0) * high) - ratio / 2;
    const first = Math.floor(frame.i0 / block), last = Math.min(blocks, Math.ceil(frame.i1 / block));
    const left = Math.floor(frame.j0 / block), right = Math.min(blocks, Math.ceil(frame.j1 / block));
    context.beginPath();
    for (let row = first; row < last; row++) {
      for (let column = left; column < Math.min(right, row + 1); column++) {
        const here = chosen[row * blocks + column], before = column ? chosen[row * blocks + column - 1] : here, above = row ? chosen[(row - 1) * blocks + column] : here;
        if (here !== before) { context.moveTo(x(column), y(row)); context.lineTo(x(column), y(row + 1)); }
        if (here !== above && column < row) { context.moveTo(x(column), y(row)); context.lineTo(x(column + 1), y(row)); }
      }
    }
    context.lineWidth = ratio;
    context.strokeStyle = `rgb(${colours.a.join(",")})`;
    context.stroke();
  }

  axes() {
    const { i0, i1, j0, j1 } = this.frame;
    const tick = (axis, side, at, low, high) => {
      const label = h("span", { class: "fm-tick" }, at.toLocaleString("en"));
      label.style[side] = `${(((at - low) / (high - low)) * 100).toFixed(3)}%`;
      axis.append(label);
    };
    this.xAxis.replaceChildren(h("span", { class: "fm-axis-name" }, "key (token looked at) →"));
    this.yAxis.replaceChildren(h("span", { class: "fm-axis-name" }, "← query (token looking)"));
    for (const at of niceTicks(j0, j1, 5)) tick(this.xAxis, "left", at, j0, j1);
    for (const at of niceTicks(i0, i1, 5)) tick(this.yAxis, "top", at, i0, i1);
  }

  // The block in hand, and its token where tokens can be told apart.
  mark() {
    const { over, frame, block, cursor } = this, context = over.getContext("2d"), W = over.width, H = over.height, ratio = window.devicePixelRatio || 1;
    context.clearRect(0, 0, W, H);
    if (!cursor) return;
    const x = (at) => ((at - frame.j0) / (frame.j1 - frame.j0)) * W, y = (at) => ((at - frame.i0) / (frame.i1 - frame.i0)) * H;
    const box = (i, j, size, width) => {
      const left = x(j), top = y(i), right = x(Math.min(j + size, this.tokens)), bottom = y(Math.min(i + size, this.tokens));
      context.lineWidth = width * ratio;
      context.strokeRect(left, top, Math.max(right - left, 3 * ratio), Math.max(bottom - top, 3 * ratio));
    };
    context.strokeStyle = `rgb(${this.palette.colours.mark.join(",")})`;
    box(Math.floor(cursor.i / block) * block, Math.floor(cursor.j / block) * block, block, 2.5);
    if (this.near) box(cursor.i, cursor.j, 1, 2);
  }

  // Whether single tokens can be told apart.
  get near() {
    return this.plot.clientWidth / (this.frame.j1 - this.frame.j0) >= 5;
  }

  point(cursor) {
    this.cursor = cursor;
    this.mark();
    this.hovered(cursor);
  }

  at(event) {
    const box = this.over.getBoundingClientRect(), { i0, i1, j0, j1 } = this.frame, last = this.tokens - 1;
    const fx = (event.clientX - box.left) / box.width, fy = (event.clientY - box.top) / box.height;
    return { i: clamp(Math.floor(i0 + fy * (i1 - i0)), 0, last), j: clamp(Math.floor(j0 + fx * (j1 - j0)), 0, last), fx, fy };
  }

  press(event) {
    if (event.button !== 0) return;
    this.over.focus({ preventScroll: true });
    this.over.setPointerCapture(event.pointerId);
    this.dragged = { x: event.clientX, y: event.clientY, frame: this.frame };
    this.point(this.at(event));
    event.preventDefault();
  }

  move(event) {
    const { dragged } = this;
    if (!dragged || !(event.buttons & 1)) return this.point(this.at(event));
    const { frame } = dragged, box = this.over.getBoundingClientRect();
    this.go(this.moved(frame, ((dragged.y - event.clientY) / box.height) * (frame.i1 - frame.i0), ((dragged.x - event.clientX) / box.width) * (frame.j1 - frame.j0)));
  }

  moved({ i0, i1, j0, j1 }, down, across) {
    const by = (low, high, step) => clamp(step, -low, this.tokens - high);
    const di = by(i0, i1, down), dj = by(j0, j1, across);
    return { i0: i0 + di, i1: i1 + di, j0: j0 + dj, j1: j1 + dj };
  }

  // The wheel zooms a map that has the focus, or with Ctrl or Cmd held; otherwise it belongs to the notebook.
  wheel(event) {
    if (document.activeElement !== this.over && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const { fx, fy } = this.at(event);
    this.zoom(Math.exp(event.deltaY * 0.002), fx, fy);
  }

  // Around a place of the picture; without one around what is in hand, or the middle.
  zoom(factor, fx, fy) {
    const { i0, i1, j0, j1 } = this.frame, { cursor } = this;
    if (fx === undefined) {
      const inside = cursor && cursor.i >= i0 && cursor.i < i1 && cursor.j >= j0 && cursor.j < j1;
      [fx, fy] = inside ? [(cursor.j + 0.5 - j0) / (j1 - j0), (cursor.i + 0.5 - i0) / (i1 - i0)] : [0.5, 0.5];
    }
    const span = clamp((i1 - i0) * factor, Math.min(NEAREST, this.tokens), this.tokens);
    const start = (low, high, share) => clamp(low + (high - low - span) * share, 0, this.tokens - span);
    const i = start(i0, i1, fy), j = start(j0, j1, fx);
    this.go({ i0: i, i1: i + span, j0: j, j1: j + span });
  }

  go(frame) {
    this.frame = frame;
    this.paint();
    this.hovered(this.cursor);
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.looked(frame), 60);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = (this.near ? 1 : this.block) * (event.shiftKey ? 8 : 1), last = this.tokens - 1;
    const moves = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] };
    const zooms = { "+": 0.5, "=": 0.5, "-": 2, _: 2 };
    if (event.key in moves) {
      const [down, across] = moves[event.key], { i0, j0 } = this.frame, from = this.cursor ?? { i: Math.floor(i0), j: Math.floor(j0) };
      const to = { i: clamp(from.i + down, 0, last), j: clamp(from.j + across, 0, last) };
      this.follow(to);
      this.point(to);
    } else if (event.key in zooms) this.zoom(zooms[event.key]);
    else if (event.key === "0" || event.key === "Escape") this.go({ i0: 0, i1: this.tokens, j0: 0, j1: this.tokens });
    else return;
    event.preventDefault();
  }

  // Bring what is in hand into view.
  follow({ i, j }) {
    const { i0, i1, j0, j1 } = this.frame, by = (low, high, at) => (at < low ? at - low : at >= high ? at + 1 - high : 0);
    const down = by(i0, i1, i), across = by(j0, j1, j);
    if (down || across) this.go(this.moved(this.frame, down, across));
  }

  close() {
    clearTimeout(this.waiting);
    this.resized.disconnect();
  }
}
