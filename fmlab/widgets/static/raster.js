// Runs as the kernel sends them, and their pooling into pixels.
//
// A run is one expiry per token and head: a head holds token i at step t while i <= t < expiry[i]. Heads that forgot
// alike share one row; `index` names the row of every head. Pooling costs O(rows x tokens + pixels), never O(tokens²).

class Run {
  constructor(header, view) {
    const width = header.width;
    const start = view.byteOffset + header.offset;
    const size = header.rows * header.n;
    // a typed array needs an aligned start, which a message does not promise: copy, at most a few hundred kB
    const bytes = view.buffer.slice(start, start + size * width);
    const all = width === 2 ? new Int16Array(bytes) : new Int32Array(bytes);
    this.n = header.n;
    this.label = header.label;
    this.index = header.index;
    this.heads = header.index.length;
    this.rows = Array.from({ length: header.rows }, (_, k) => all.subarray(k * header.n, (k + 1) * header.n));
    this.weights = new Array(header.rows).fill(0);
    for (const row of header.index) this.weights[row] += 1;
  }

  // How many heads hold token i at step t.
  holders(i, t) {
    if (t < i) return 0;
    let sum = 0;
    for (let k = 0; k < this.rows.length; k++) if (t < this.rows[k][i]) sum += this.weights[k];
    return sum;
  }

  share(i, t) {
    return this.holders(i, t) / this.heads;
  }

  // First and last expiry of token i over the heads.
  span(i) {
    let first = Infinity, last = 0;
    for (const row of this.rows) {
      first = Math.min(first, row[i]);
      last = Math.max(last, row[i]);
    }
    return [first, last];
  }
}

// Two runs head by head: pairs of rows with the number of heads that have them.
class Pairing {
  constructor(a, b) {
    this.a = a;
    this.b = b;
    this.n = a.n;
    this.heads = a.heads;
    const seen = new Map();
    for (let head = 0; head < a.heads; head++) {
      const key = a.index[head] * b.rows.length + b.index[head];
      seen.set(key, (seen.get(key) ?? 0) + 1);
    }
    this.pairs = [...seen].map(([key, weight]) => {
      const row = Math.floor(key / b.rows.length);
      return { a: a.rows[row], b: b.rows[key - row * b.rows.length], weight };
    });
  }

  // Shares of heads in which both, only A, only B hold token i at step t.
  shares(i, t) {
    let both = 0, onlyA = 0, onlyB = 0;
    if (t >= i) {
      for (const pair of this.pairs) {
        const inA = t < pair.a[i], inB = t < pair.b[i];
        if (inA && inB) both += pair.weight;
        else if (inA) onlyA += pair.weight;
        else if (inB) onlyB += pair.weight;
      }
    }
    return { both: both / this.heads, onlyA: onlyA / this.heads, onlyB: onlyB / this.heads };
  }
}

// Where tokens and steps of a window fall on W x H pixels. Tokens are summed in `rows` lines: those of the picture, or
// fewer where every token has several lines of pixels. A line has W + 1 columns, so that an interval may end at its edge.
class Grid {
  constructor(n, frame, W, H) {
    const { i0, i1, t0, t1 } = frame, scale = W / (t1 - t0);
    this.n = n;
    this.W = W;
    this.H = H;
    this.first = Math.floor(i0);
    this.last = Math.min(n, Math.ceil(i1));
    this.rows = Math.min(H, this.last - this.first);
    this.size = this.rows * (W + 1);
    // the column of every step, the end of the text and "never" included
    this.column = Int32Array.from({ length: n + 2 }, (_, t) => clamp(Math.round((Math.min(t, n) - t0) * scale), 0, W));
    const line = (i) => (H <= this.last - this.first ? clamp(Math.floor(((i - i0) * H) / (i1 - i0)), 0, H - 1) : i - this.first);
    this.line = Int32Array.from({ length: this.last - this.first }, (_, k) => line(this.first + k) * (W + 1));
    // the line that a row of pixels shows
    this.shown = Int32Array.from({ length: H }, (_, y) =>
      (H <= this.last - this.first ? y : clamp(Math.floor(i0 + ((y + 0.5) * (i1 - i0)) / H), this.first, this.last - 1) - this.first) * (W + 1));
  }

  // How many heads times tokens have been read at every place.
  read(heads) {
    const out = new Float32Array(this.size), { first, last, line, column } = this, end = column[this.n];
    for (let i = first; i < last; i++) {
      out[line[i - first] + column[i]] += heads;
      out[line[i - first] + end] -= heads;
    }
    return this.sums(out);
  }

  sums(out) {
    for (let at = 0; at < out.length; ) {
      let sum = 0;
      for (const end = at + this.W + 1; at < end; at++) out[at] = sum += out[at];
    }
    return out;
  }
}

function pack(red, green, blue) {
  return (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
}

const SHADES = 64;

// One run: empty where not read yet, `gone` to `held` by the share of heads that hold.
function paintRun(run, frame, W, H, pixels, colours, held) {
  const grid = new Grid(run.n, frame, W, H), { first, last, line, column } = grid;
  const read = grid.read(run.heads), kept = new Float32Array(grid.size);
  run.rows.forEach((expiry, k) => {
    const weight = run.weights[k];
    for (let i = first; i < last; i++) {
      const at = line[i - first];
      kept[at + column[i]] += weight;
      kept[at + column[expiry[i]]] -= weight;
    }
  });
  grid.sums(kept);
  const { gone } = colours, empty = pack(...colours.empty);
  const ramp = Uint32Array.from({ length: SHADES + 1 }, (_, k) =>
    pack(...gone.map((from, c) => Math.round(from + ((held[c] - from) * k) / SHADES))));
  for (let y = 0, out = 0; y < H; y++) {
    for (let x = 0, at = grid.shown[y]; x < W; x++, at++, out++) {
      pixels[out] = read[at] < 0.5 ? empty : ramp[Math.round((kept[at] / read[at]) * SHADES)];
    }
  }
}

// Two runs: both, only A (hatched /), only B (hatched \), neither.
function paintDifference(pairing, frame, W, H, pixels, colours, stride) {
  const grid = new Grid(pairing.n, frame, W, H), { first, last, line, column } = grid;
  const read = grid.read(pairing.heads), [both, onlyA, onlyB] = [0, 1, 2].map(() => new Float32Array(grid.size));
  for (const { a, b, weight } of pairing.pairs) {
    for (let i = first; i < last; i++) {
      const at = line[i - first], endA = at + column[a[i]], endB = at + column[b[i]];
      both[at + column[i]] += weight;
      if (endA > endB) {
        both[endB] -= weight;
        onlyA[endB] += weight;
        onlyA[endA] -= weight;
      } else {
        both[endA] -= weight;
        onlyB[endA] += weight;
        onlyB[endB] -= weight;
      }
    }
  }
  for (const layer of [both, onlyA, onlyB]) grid.sums(layer);
  const empty = pack(...colours.empty), { gone, a: blue, b: orange } = colours, grey = colours.both;
  const ofAll = pack(...grey), ofNone = pack(...gone);  // most pixels are one or the other
  for (let y = 0, out = 0; y < H; y++) {
    for (let x = 0, at = grid.shown[y]; x < W; x++, at++, out++) {
      const all = read[at];
      if (all < 0.5) {
        pixels[out] = empty;
        continue;
      }
      const p = both[at] / all;
      let q = onlyA[at] / all, r = onlyB[at] / all;
      if (q < 0.001 && r < 0.001 && (p < 0.001 || p > 0.999)) {
        pixels[out] = p > 0.5 ? ofAll : ofNone;
        continue;
      }
      const phase = q > r ? (x + y) % stride : (x - y + stride * H) % stride;
      if (phase * 4 < stride && (q > 0.2 || r > 0.2)) {
        q *= 0.45;
        r *= 0.45;
      }
      const s = 1 - p - q - r;
      pixels[out] = pack(
        Math.round(gone[0] * s + grey[0] * p + blue[0] * q + orange[0] * r),
        Math.round(gone[1] * s + grey[1] * p + blue[1] * q + orange[1] * r),
        Math.round(gone[2] * s + grey[2] * p + blue[2] * q + orange[2] * r),
      );
    }
  }
}
