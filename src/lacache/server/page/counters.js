// Numbers beside the picture, and a text alternative of the picture.

import { bytes, number, plural } from "./format.js";

const LABEL_PAUSE = 1000;

export class Counters {
  #first = 0;
  #last = 0;
  #count = 0;
  #timer = 0;

  constructor(find, state, ladder) {
    this.find = find;
    this.state = state;
    this.ladder = ladder;
  }

  /** Start to measure a new answer. */
  begin() {
    this.#count = 0;
    this.find("speed").textContent = "–";
  }

  add(count) {
    this.#last = performance.now();
    if (!this.#count) this.#first = this.#last;
    this.#count += count;
    if (this.speed) this.find("speed").textContent = this.speed.toFixed(1);
  }

  /** Tokens per second after the first, whose time includes the prefill. */
  get speed() {
    return this.#count > 1 ? (1000 * (this.#count - 1)) / (this.#last - this.#first) : 0;
  }

  get summary() {
    const speed = this.speed ? `, ${this.speed.toFixed(1)} tokens/s` : "";
    return this.#count ? `Done: ${plural(this.#count, "token")} generated${speed}.` : "Ready.";
  }

  update() {
    const { state } = this;
    const put = (id, value) => (this.find(id).textContent = value);
    put("seen", number(state.seen));
    const { answer } = state;
    if (!answer) return;
    const { mean, any } = state.numbers;
    const full = answer.full_bytes_per_token * state.seen;
    put("held", number(mean));
    put("held-more", `per layer (mean); ${number(any)} in at least one`);
    put("bytes", bytes(answer.bytes));
    put("bytes-more", `fixed, ${bytes(answer.held_bytes)} in use; full cache: ${bytes(full)}`);
    put("compactions", number(answer.compactions));
    put("last-layer", `layer ${answer.layers.length - 1}`);
    put("middle-token", number(this.ladder.extent / 2));
    put("last-token", number(this.ladder.extent));
    this.#label();
  }

  /** Update at most once a second: it is long, and screen readers read it at each change. */
  #label() {
    if (this.#timer) return;
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      const { state } = this;
      if (!state.answer) return;
      const { mean, any } = state.numbers;
      this.ladder.canvas.setAttribute(
        "aria-label",
        `Cache of ${plural(state.answer.layers.length, "layer")} after ${plural(state.seen, "token")}: ` +
          `a layer holds ${number(mean)} on average, ${number(any)} are in at least one layer, ` +
          `${plural(state.answer.compactions, "compaction")} so far`,
      );
    }, LABEL_PAUSE);
  }
}
