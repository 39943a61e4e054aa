// The token x step map of one run, or of the difference of two: a canvas, its axes, its pointer and its keys.
function niceTicks(low, high, wanted) {
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(Math.max(raw, 1)));
  const stride = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw) ?? power;
  const ticks = [];
  for (let at = Math.ceil(low / stride) * stride; at < high; at += stride) ticks.push(at);
  return ticks;
}

class RetentionCanvas {
  constructor(view) {
    this.view = view;
    this.source = null;
    this.base = h("canvas", { class: "fm-base", "aria-hidden": "true" });
    this.over = h("canvas", {
      class: "fm-over", tabindex: "0", role: "slider", "aria-orientation": "horizontal", "aria-valuemin": "0",
      onpointerdown: (event) => this.press(event), onpointermove: (event) => this.move(event),
      onpointerleave: () => view.setHover(null), onkeydown: (event) => view.key(event),
    });
    this.over.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.title = h("div", { class: "fm-map-title" });
    this.plot = h("div", { class: "fm-plot" }, this.base, this.over);
    this.xAxis = h("div", { class: "fm-x-axis", "aria-hidden": "true" });
    this.yAxis = h("div", { class: "fm-y-axis", "aria-hidden": "true" });
    this.element = h("div", { class: "fm-map" }, this.title, this.yAxis, this.plot, this.xAxis);
    this.resized = new ResizeObserver(() => this.paint());
    this.resized.observe(this.plot);
  }

  // source: {kind: "run", run, side} or {kind: "difference", pairing}
  show(source, title) {
    this.source = source;
    this.title.replaceChildren(...title);
    this.over.setAttribute("aria-label", `Map of tokens by steps. ${this.title.textContent}. ` +
      "Left and right change the step, up and down the token, plus and minus zoom.");
    this.paint();
  }

  get pixelRatio() {
    return window.devicePixelRatio || 1;
  }

  paint() {
    const ratio = this.pixelRatio, W = Math.round(this.plot.clientWidth * ratio), H = Math.round(this.plot.clientHeight * ratio);
    if (!this.source || W < 2 || H < 2) return;
    for (const canvas of [this.base, this.over]) {
      if (canvas.width !== W) canvas.width = W;
      if (canvas.height !== H) canvas.height = H;
    }
    const context = this.base.getContext("2d"), image = context.createImageData(W, H);
    const pixels = new Uint32Array(image.data.buffer), colours = this.view.palette.read(), frame = this.view.frame;
    if (this.source.kind === "run") {
      paintRun(this.source.run, frame, W, H, pixels, colours, colours[this.source.side]);
    } else {
      paintDifference(this.source.pairing, frame, W, H, pixels, colours, Math.round(6 * ratio));
    }
    context.putImageData(image, 0, 0);
    this.axes();
    this.mark();
    this.view.painted();
  }

  axes() {
    const { i0, i1, t0, t1 } = this.view.frame;
    const tick = (axis, side, at, low, high) => {
      const label = h("span", { class: "fm-tick" }, at.toLocaleString("en"));
      label.style[side] = `${(((at + 0.5 - low) / (high - low)) * 100).toFixed(3)}%`;
      axis.append(label);
    };
    this.xAxis.replaceChildren(h("span", { class: "fm-axis-name" }, "step (token being read) →"));
    this.yAxis.replaceChildren(h("span", { class: "fm-axis-name" }, "← token in the text"));
    for (const at of niceTicks(t0, t1, 5)) tick(this.xAxis, "left", at, t0, t1);
    for (const at of niceTicks(i0, i1, 5)) tick(this.yAxis, "top", at, i0, i1);
  }

  // The line of the selected step and the row of the token in hand, on a canvas of their own.
  mark() {
    const { view, over } = this, W = over.width, H = over.height;
    if (!this.source || !W || !H) return;
    const context = over.getContext("2d"), ratio = this.pixelRatio, { i0, i1, t0, t1 } = view.frame;
    context.clearRect(0, 0, W, H);
    const css = (name) => `rgb(${view.colours[name].join(",")})`;
    const token = view.token;
    if (token !== null && token >= i0 - 1 && token < i1) {
      const y = ((token - i0) / (i1 - i0)) * H, height = Math.max(2 * ratio, H / (i1 - i0));
      context.fillStyle = css("mark");
      context.globalAlpha = 0.3;
      context.fillRect(0, y, W, height);
      context.globalAlpha = 1;
      context.fillRect(0, y, W, Math.max(1, ratio));
      context.fillRect(0, y + height - Math.max(1, ratio), W, Math.max(1, ratio));
    }
    if (view.step >= t0 - 1 && view.step < t1 + 1) {
      const x = clamp(((view.step + 0.5 - t0) / (t1 - t0)) * W, ratio, W - ratio);
      context.fillStyle = css("empty");
      context.fillRect(x - 2 * ratio, 0, 4 * ratio, H);
      context.fillStyle = css("ink");
      context.fillRect(x - ratio, 0, 2 * ratio, H);
      context.beginPath();
      context.moveTo(x - 6 * ratio, 0);
      context.lineTo(x + 6 * ratio, 0);
      context.lineTo(x, 8 * ratio);
      context.fill();
    }
    over.setAttribute("aria-valuemax", view.n - 1);
    over.setAttribute("aria-valuenow", view.step);
    over.setAttribute("aria-valuetext", `step ${view.step} of ${view.n - 1}`);
  }

  at(event) {
    const box = this.over.getBoundingClientRect(), { i0, i1, t0, t1 } = this.view.frame, last = this.view.n - 1;
    const fx = (event.clientX - box.left) / box.width, fy = (event.clientY - box.top) / box.height;
    return {
      token: clamp(Math.floor(i0 + fy * (i1 - i0)), 0, last),
      step: clamp(Math.floor(t0 + fx * (t1 - t0)), 0, last),
      fx, fy,
    };
  }

  press(event) {
    if (event.button !== 0) return;
    this.over.focus({ preventScroll: true });
    this.over.setPointerCapture(event.pointerId);
    const { token, step } = this.at(event);
    this.view.setStep(step);
    this.view.choose(token);
    event.preventDefault();
  }

  move(event) {
    const { token, step } = this.at(event);
    if (event.buttons & 1) this.view.setStep(step);
    this.view.setHover(token, event.buttons & 1 ? null : step);
  }

  // The wheel zooms a map that has the focus, or with Ctrl or Cmd held; otherwise it belongs to the notebook.
  wheel(event) {
    if (document.activeElement !== this.over && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const { fx, fy } = this.at(event);
    this.view.zoom(Math.exp(event.deltaY * 0.002), fx, fy);
  }
}
