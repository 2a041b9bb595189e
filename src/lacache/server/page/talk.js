// The messages, as they are shown and as they are sent again with each new one.

export class Talk {
  messages = [];

  constructor(log, welcome) {
    this.log = log;
    this.welcome = welcome;
  }

  clear() {
    this.messages = [];
    this.log.replaceChildren(this.welcome);
  }

  add(role, content = "") {
    const message = { role, content };
    const item = document.createElement("article");
    item.className = role;
    const name = document.createElement("h2");
    name.textContent = role === "user" ? "You" : "Model";
    const text = document.createTextNode(content);
    const body = document.createElement("p");
    body.append(text);
    item.append(name, body);
    this.welcome.remove();
    this.log.append(item);
    this.messages.push(message);
    this.#follow(true);
    return {
      message,
      append: (piece) => {
        const isAtEnd = this.#isAtEnd;
        message.content += piece;
        text.appendData(piece);
        this.#follow(isAtEnd);
      },
      note: (words) => {
        const note = document.createElement("p");
        note.className = "note";
        note.textContent = words;
        item.append(note);
        this.#follow(true);
      },
      remove: () => {
        item.remove();
        this.messages = this.messages.filter((one) => one !== message);
        if (!this.messages.length) this.log.replaceChildren(this.welcome);
      },
    };
  }

  /** A screen reader waits until an answer is whole. */
  set isBusy(value) {
    this.log.setAttribute("aria-busy", value);
  }

  get #isAtEnd() {
    return this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 40;
  }

  #follow(isAtEnd) {
    if (isAtEnd) this.log.scrollTop = this.log.scrollHeight;
  }
}
