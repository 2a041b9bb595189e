// The tokens that the model has processed, and those of them that its KV cache holds.
// The server computes the schedule; until `changes_at` tokens, every layer adds each new token.

import { RequestError } from "./api.js";
import { coverage, evicted, layersWith, meanHeld } from "./cells.js";

// An answer for many layers has megabytes, so requests adapt to its transfer time.
const MIN_PAUSE = 100;
const PAUSE_RATIO = 2;

export class CacheState {
  texts = [];
  seen = 0;
  answer = null;
  evicted = null;

  #coverage = new Float32Array(0);
  #model = "";
  #isRequesting = false;
  #pause = MIN_PAUSE;

  /**
   * @param ask returns the answer of /inspect for (seen, model)
   * @param changed is called after every visible change
   * @param failed is called with a RequestError
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

  /** Begin a prompt; `start` then has how many of its tokens need no prefill. */
  prompt(texts) {
    this.texts = texts;
    this.seen = Math.min(this.seen, texts.length);
    this.changed();
  }

  start(seen) {
    // Evictions of another conversation must not look as if they had just happened.
    if (seen !== this.seen || seen < this.answer?.num_seen) this.#forget();
    this.seen = seen;
    this.#follow();
  }

  prefill(count) {
    this.seen += count;
    this.#follow();
  }

  decode(texts) {
    this.texts.push(...texts);
    // The newest token is not in the cache until the next one is generated.
    this.seen = this.texts.length - 1;
    this.#follow();
  }

  /** Number of tokens for which the answer is exact. */
  get known() {
    return this.answer ? Math.min(this.seen, this.answer.changes_at - 1) : 0;
  }

  /** Range [start, stop) of tokens since the answer, which every layer holds. */
  get tail() {
    const start = this.answer ? this.answer.num_seen : 0;
    return [start, Math.max(start, this.known)];
  }

  /** The share of layers that hold a token; null if it is not processed yet. */
  coverage(token) {
    if (token >= this.seen) return null;
    return token < this.#coverage.length ? this.#coverage[token] : 1;
  }

  /** For each layer, the share of KV heads that hold a token. */
  layersWith(token) {
    const { held, layers, num_seen } = this.answer;
    return token >= num_seen ? layers.map(() => 1) : layersWith(held, layers, token);
  }

  /** The mean number of tokens per layer, and the number of tokens in at least one layer. */
  get numbers() {
    const [start, stop] = this.tail;
    return { mean: this.answer.mean + stop - start, any: this.answer.any + stop - start };
  }

  #forget() {
    this.answer = null;
    this.evicted = null;
    this.#coverage = new Float32Array(0);
  }

  get #isStale() {
    return !this.answer || this.seen >= this.answer.changes_at || this.seen < this.answer.num_seen;
  }

  async #follow() {
    this.changed();
    if (this.#isRequesting || !this.#isStale || !this.#model) return;
    this.#isRequesting = true;
    try {
      while (this.#isStale) {
        const [seen, model, before] = [this.seen, this.#model, this.answer];
        const began = performance.now();
        const answer = await this.ask(seen, model);
        // Meanwhile the user may have chosen another model or begun a new conversation.
        if (model === this.#model && before === this.answer && seen <= this.seen) {
          this.#accept(answer);
        }
        this.#pause = Math.max(MIN_PAUSE, PAUSE_RATIO * (performance.now() - began));
        await new Promise((resolve) => setTimeout(resolve, this.#pause));
      }
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      this.failed(error);
    } finally {
      this.#isRequesting = false;
    }
  }

  #accept(answer) {
    const { held, layers, num_seen } = answer;
    answer.mean = meanHeld(held, layers);
    const share = coverage(held, layers, num_seen);
    answer.any = share.reduce((sum, part) => sum + (part > 0), 0);
    const before = this.answer;
    this.evicted = before && evicted(before, [before.num_seen, Math.min(num_seen, before.changes_at - 1)], answer);
    this.answer = answer;
    this.#coverage = share;
    this.changed();
  }
}
