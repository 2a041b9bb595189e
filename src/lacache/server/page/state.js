// What the model has seen, and what its cache holds of that.
// The server knows the schedule; until `changes_at`, every layer just adds each new token.

import { Refused } from "./api.js";
import { coverage, layersWith, lost, meanHeld } from "./cells.js";

// An answer for many layers is megabytes: the faster it comes, the more often it may be asked for.
const LEAST_PAUSE = 100;
const REST = 2;

export class CacheState {
  texts = [];
  seen = 0;
  answer = null;
  dropped = null;

  #coverage = new Float32Array(0);
  #model = "";
  #asking = false;
  #pause = LEAST_PAUSE;

  /**
   * @param ask gets what /inspect answers for (seen, model)
   * @param changed is called after everything that can be seen
   * @param failed is called with what the server refused
   */
  constructor(ask, changed, failed) {
    this.ask = ask;
    this.changed = changed;
    this.failed = failed;
  }

  use(model) {
    this.#model = model;
    this.#forget();
    this.#follow();
  }

  clear() {
    this.texts = [];
    this.seen = 0;
    this.#forget();
    this.#follow();
  }

  /** A prompt is about to be read; how much of it is known already is told by `start`. */
  prompt(texts) {
    this.texts = texts;
    this.seen = Math.min(this.seen, texts.length);
    this.changed();
  }

  start(seen) {
    // What this text has not seen happen must not look as if it had just happened.
    if (seen !== this.seen || seen < this.answer?.num_seen) this.#forget();
    this.seen = seen;
    this.#follow();
  }

  read(count) {
    this.seen += count;
    this.#follow();
  }

  write(texts) {
    this.texts.push(...texts);
    // The model has not read the newest token yet: it reads it to write the next.
    this.seen = this.texts.length - 1;
    this.#follow();
  }

  /** Tokens of which is certain what the layers hold. */
  get known() {
    return this.answer ? Math.min(this.seen, this.answer.changes_at - 1) : 0;
  }

  /** The tokens read since the answer that every layer holds: first, and one after the last. */
  get tail() {
    const start = this.answer ? this.answer.num_seen : 0;
    return [start, Math.max(start, this.known)];
  }

  /** The share of layers that hold a token; null if it was not read yet. */
  coverage(token) {
    if (token >= this.seen) return null;
    return token < this.#coverage.length ? this.#coverage[token] : 1;
  }

  /** For each layer, the share of KV heads that hold a token. */
  layersWith(token) {
    const { held, layers, num_seen } = this.answer;
    return token >= num_seen ? layers.map(() => 1) : layersWith(held, layers, token);
  }

  /** Tokens that a layer holds, on average, and those that any layer holds. */
  get numbers() {
    const [start, stop] = this.tail;
    return { mean: this.answer.mean + stop - start, any: this.answer.any + stop - start };
  }

  #forget() {
    this.answer = null;
    this.dropped = null;
    this.#coverage = new Float32Array(0);
  }

  get #isStale() {
    return !this.answer || this.seen >= this.answer.changes_at || this.seen < this.answer.num_seen;
  }

  async #follow() {
    this.changed();
    if (this.#asking || !this.#isStale || !this.#model) return;
    this.#asking = true;
    try {
      while (this.#isStale) {
        const [seen, model, before] = [this.seen, this.#model, this.answer];
        const began = performance.now();
        const answer = await this.ask(seen, model);
        // Meanwhile another model may have been chosen, or the text have begun anew.
        if (model === this.#model && before === this.answer && seen <= this.seen) {
          this.#accept(answer);
        }
        this.#pause = Math.max(LEAST_PAUSE, REST * (performance.now() - began));
        await new Promise((resolve) => setTimeout(resolve, this.#pause));
      }
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.failed(error);
    } finally {
      this.#asking = false;
    }
  }

  #accept(answer) {
    const { held, layers, num_seen } = answer;
    answer.mean = meanHeld(held, layers);
    const share = coverage(held, layers, num_seen);
    answer.any = share.reduce((sum, part) => sum + (part > 0), 0);
    const before = this.answer;
    this.dropped = before && lost(before, [before.num_seen, Math.min(num_seen, before.changes_at - 1)], answer);
    this.answer = answer;
    this.#coverage = share;
    this.changed();
  }
}
