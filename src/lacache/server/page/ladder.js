// The picture of the KV cache: a row for each layer, tokens from left to right.

import { Scale, shares } from "./cells.js";

const FADE = 900;
const COLORS = ["held", "evicted", "flash", "mark", "surface"];

export class Ladder {
  picked = null;
  #flash = null;
  #flashStart = 0;
  #due = false;
  #colors = {};
  #cells = document.createElement("canvas");

  /**
   * @param canvas to draw on
   * @param state a CacheState
   * @param pick is called with the token that is pointed at, or null
   */
  constructor(canvas, state, pick) {
    this.canvas = canvas;
    this.state = state;
    this.pick = pick;
    new ResizeObserver(() => this.draw()).observe(canvas);
    addEventListener("resize", () => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#recolor());
    canvas.addEventListener("pointermove", (event) => this.pick(this.#under(event)));
    canvas.addEventListener("pointerdown", (event) => this.pick(this.#under(event)));
    canvas.addEventListener("pointerleave", (event) => {
      // A finger always leaves, and its token must stay readable.
      if (event.pointerType === "mouse") this.pick(null);
    });
    canvas.addEventListener("keydown", (event) => this.#move(event));
    this.#recolor();
  }

  /** Number of tokens on the x axis; grows in steps, so that the scale rarely changes. */
  get extent() {
    let extent = 64;
    const seen = Math.max(this.state.seen, 1);
    while (extent < seen) extent *= 2;
    return extent > 64 && seen <= extent * 0.75 ? extent * 0.75 : extent;
  }

  draw() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame((now) => {
      this.#due = false;
      this.#draw(now);
    });
  }

  #recolor() {
    const style = getComputedStyle(this.canvas);
    for (const name of COLORS) {
      const hex = style.getPropertyValue(`--${name}`).trim();
      this.#colors[name] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    }
    this.draw();
  }

  #draw(now) {
    const { canvas, state } = this;
    const layers = state.answer?.layers.length;
    if (layers) canvas.style.height = `${rowHeight(layers) * layers}px`;
    const ratio = devicePixelRatio;
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const context = canvas.getContext("2d");
    // The last picture stays until the server has answered.
    if (!layers && state.seen) return;
    context.clearRect(0, 0, width, height);
    if (!layers) return;
    const scale = new Scale(this.extent, width);
    this.#paint(scale, this.#fade(now));
    context.imageSmoothingEnabled = false;
    context.drawImage(this.#cells, 0, 0, width, height);
    this.#rule(context, scale, width, height);
    this.#mark(context, width, height);
  }

  /** Opacity of the tokens that were just evicted. */
  #fade(now) {
    const { evicted } = this.state;
    if (evicted !== this.#flash) {
      this.#flash = evicted;
      this.#flashStart = now;
    }
    if (!evicted?.any || matchMedia("(prefers-reduced-motion: reduce)").matches) return 0;
    const left = 1 - (now - this.#flashStart) / FADE;
    if (left > 0) this.draw();
    return Math.max(0, left);
  }

  #paint(scale, fade) {
    const { answer, evicted, known, tail } = this.state;
    const rows = shares(answer.held, answer.layers, tail, scale, known);
    const gone = fade ? shares(evicted.held, evicted.layers, [0, 0], scale, known) : null;
    const image = new ImageData(scale.columns, rows.length);
    const end = known ? scale.column(known - 1) + 1 : 0;
    const { held, evicted: empty, flash: bright } = this.#colors;
    rows.forEach((row, layer) => {
      for (let column = 0; column < end; column += 1) {
        const at = 4 * (layer * scale.columns + column);
        const full = strength(row[column]);
        const flash = gone ? fade * strength(gone[layer][column]) : 0;
        for (let c = 0; c < 3; c += 1) {
          const calm = empty[c] + full * (held[c] - empty[c]);
          image.data[at + c] = calm + flash * (bright[c] - calm);
        }
        image.data[at + 3] = 255;
      }
    });
    this.#cells.width = scale.columns;
    this.#cells.height = rows.length;
    this.#cells.getContext("2d").putImageData(image, 0, 0);
  }

  /** Draw lines between layers, and between tokens if they are wide enough. */
  #rule(context, scale, width, height) {
    const layers = this.state.answer.layers.length;
    context.fillStyle = css(this.#colors.surface);
    const step = height / layers;
    if (step >= 5) {
      for (let row = 1; row < layers; row += 1) {
        context.fillRect(0, Math.round(row * step), width, 1);
      }
    }
    if (width / scale.extent >= 6) {
      for (let token = 1; token < scale.extent; token += 1) {
        context.fillRect(Math.round((token * width) / scale.extent), 0, 1, height);
      }
    }
  }

  #mark(context, width, height) {
    if (this.picked === null) return;
    const line = Math.max(2, Math.round(2 * devicePixelRatio));
    const x = Math.floor((this.picked * width) / this.extent);
    const size = Math.max(line, Math.ceil(width / this.extent));
    context.strokeStyle = css(this.#colors.mark);
    context.lineWidth = line;
    context.strokeRect(x - line / 2, line / 2, size + line, height - line);
  }

  /** The token under the pointer; of several in one column, the one that most layers hold. */
  #under(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = new Scale(this.extent, Math.round(box.width));
    const place = Math.max(0, Math.min(0.999999, (event.clientX - box.left) / box.width));
    const column = Math.floor(place * scale.columns);
    const stop = Math.min(this.state.seen, scale.first(column + 1));
    let best = null;
    for (let token = scale.first(column); token < stop; token += 1) {
      if (best === null || this.state.coverage(token) > this.state.coverage(best)) best = token;
    }
    return best;
  }

  #move(event) {
    const last = this.state.seen - 1;
    const now = this.picked ?? last + 1;
    const step = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: now - step, ArrowRight: now + step, Home: 0, End: last };
    if (event.key === "Escape") this.pick(null);
    if (!(event.key in moves) || last < 0) return;
    event.preventDefault();
    this.pick(Math.max(0, Math.min(last, moves[event.key])));
  }
}

const rowHeight = (layers) => {
  const room = Math.max(120, Math.min(240, innerHeight / 4));
  return Math.max(3, Math.min(16, Math.floor(room / layers)));
};

const css = (color) => `rgb(${color.join(" ")})`;

// One token of a hundred must be visible.
const strength = (share) => (share > 0 ? 0.2 + 0.8 * share : 0);
