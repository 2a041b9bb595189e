// The prompt and the answer, each token shaded by the share of layers that hold it.

import { number } from "./format.js";

const MAX_SHOWN = 4000;
const SLACK = 500;
const LEVELS = 8;

export class TokenPane {
  #first = 0;
  #shown = [];
  #texts = null;
  #isDue = false;
  #picked = null;

  /**
   * @param pane scrolls the tokens
   * @param state a CacheState
   * @param pick is called with the token that is pointed at, or null
   */
  constructor(pane, state, pick) {
    this.pane = pane;
    this.state = state;
    this.list = pane.querySelector("#shown");
    this.earlier = pane.querySelector("#earlier");
    this.earlier.addEventListener("click", () => this.#expand());
    this.list.addEventListener("pointerover", (event) => pick(this.#index(event.target)));
    this.list.addEventListener("pointerleave", () => pick(null));
  }

  update() {
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      this.#update();
    });
  }

  /** Outline a token; `into` also scrolls to it. */
  pick(index, into) {
    this.#picked?.classList.remove("picked");
    this.#picked = index === null ? null : (this.#shown[index - this.#first] ?? null);
    if (!this.#picked) return;
    this.#picked.classList.add("picked");
    // scrollIntoView would move the whole page on a phone.
    if (into) this.pane.scrollTop = this.#picked.offsetTop - this.pane.clientHeight / 2;
  }

  #update() {
    const { pane, state } = this;
    const isAtEnd = pane.scrollTop + pane.clientHeight >= pane.scrollHeight - 40;
    this.#keepSame();
    const end = state.texts.length;
    if (end - this.#first - this.#shown.length > MAX_SHOWN) this.#forget(this.#shown.length);
    if (!this.#shown.length) this.#first = Math.max(0, end - MAX_SHOWN);
    this.list.append(...this.#make(this.#first + this.#shown.length, end));
    // Earlier tokens stay if the user has expanded them.
    if (isAtEnd && this.#shown.length > MAX_SHOWN + SLACK) this.#forget(this.#shown.length - MAX_SHOWN);
    this.#shade();
    this.earlier.hidden = this.#first === 0;
    this.earlier.textContent = `Show ${number(Math.min(MAX_SHOWN, this.#first))} of ${number(this.#first)} earlier tokens`;
    if (isAtEnd) pane.scrollTop = pane.scrollHeight;
  }

  /** Remove the spans that differ from the new prompt. */
  #keepSame() {
    const { texts } = this.state;
    // A list only grows; a new prompt has a new list.
    if (texts === this.#texts) return;
    this.#texts = texts;
    let same = 0;
    while (same < this.#shown.length && this.#shown[same].textContent === texts[this.#first + same]) {
      same += 1;
    }
    for (const span of this.#shown.splice(same)) span.remove();
  }

  #make(start, stop) {
    const spans = [];
    for (let index = start; index < stop; index += 1) {
      const span = document.createElement("span");
      span.textContent = this.state.texts[index];
      spans.push(span);
    }
    this.#shown.push(...spans);
    return spans;
  }

  #forget(count) {
    for (const span of this.#shown.splice(0, count)) span.remove();
    this.#first += count;
  }

  #shade() {
    this.#shown.forEach((span, place) => {
      const share = this.state.coverage(this.#first + place);
      const name = share === null ? "unread" : `c${Math.ceil(share * LEVELS - 0.01)}`;
      const isPicked = span === this.#picked ? " picked" : "";
      if (span.className !== name + isPicked) span.className = name + isPicked;
    });
  }

  #expand() {
    const start = Math.max(0, this.#first - MAX_SHOWN);
    const after = this.#shown;
    const before = this.pane.scrollHeight;
    this.#shown = [];
    this.list.prepend(...this.#make(start, this.#first));
    this.#shown = this.#shown.concat(after);
    this.#first = start;
    this.#update();
    this.pane.scrollTop += this.pane.scrollHeight - before;
  }

  #index(target) {
    const place = this.#shown.indexOf(target);
    return place < 0 ? null : this.#first + place;
  }
}
