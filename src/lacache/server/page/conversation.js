// The messages, which are shown and sent again with each new one.

export class Conversation {
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
      append: (content) => {
        const isAtEnd = this.#isAtEnd;
        message.content += content;
        text.appendData(content);
        this.#follow(isAtEnd);
      },
      note: (content) => {
        const note = document.createElement("p");
        note.className = "note";
        note.textContent = content;
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

  /** Makes screen readers wait until an answer is complete. */
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
