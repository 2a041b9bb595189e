// The page: what a message sets going, and where everything is shown.

import * as api from "./api.js";
import { Counters } from "./counters.js";
import { Ladder } from "./ladder.js";
import { CacheState } from "./state.js";
import { Talk } from "./talk.js";
import { TextPane } from "./text.js";
import { number, plural, token as tokenInWords } from "./words.js";

const find = (id) => document.getElementById(id);

const state = new CacheState(api.inspect, show, report);
const ladder = new Ladder(find("ladder"), state, (index) => pick(index, true));
const text = new TextPane(find("tokens"), state, (index) => pick(index, false));
const counters = new Counters(find, state, ladder);
const talk = new Talk(find("messages"), find("welcome"));
const form = find("compose");
const box = find("text");
let running = null;

function show() {
  counters.update();
  ladder.draw();
  text.update();
  describe();
}

function pick(index, isFromPicture) {
  ladder.picked = index;
  ladder.draw();
  text.pick(index, isFromPicture);
  describe();
}

function describe() {
  const { picked } = ladder;
  const isThere = picked !== null && picked < state.texts.length && state.answer;
  const words = isThere
    ? tokenInWords(picked, state.texts[picked], picked < state.seen ? state.layersWith(picked) : null)
    : "";
  // A live region is read out whenever it is set.
  if (find("token").textContent !== words) find("token").textContent = words;
}

function tell(words) {
  if (find("status").textContent !== words) find("status").textContent = words;
}

function report(error) {
  const words = error?.message ?? "";
  if (find("problem").textContent !== words) find("problem").textContent = words;
  find("problem").hidden = !error;
  if (!error) return;
  find("key").hidden = error.status !== 401;
  tell("Something went wrong.");
}

async function connect() {
  try {
    const names = await api.models();
    find("model").replaceChildren(...names.map((name) => new Option(name, name)));
    report(null);
    find("key").hidden = true;
    state.use(names[0]);
    tell("Ready.");
  } catch (error) {
    if (!(error instanceof api.Refused)) throw error;
    report(error);
  }
}

async function send() {
  const content = box.value;
  if (running || !content.trim() || !form.reportValidity()) return;
  if (!find("model").value) await connect();
  if (!find("model").value) return;
  report(null);
  box.value = "";
  box.focus();
  const question = talk.add("user", content);
  const messages = [...talk.messages];
  const answer = talk.add("assistant");
  running = new AbortController();
  setBusy(true);
  let problem = null;
  try {
    await receive(messages, answer);
  } catch (error) {
    if (error.name === "AbortError") answer.note("stopped");
    else if (error instanceof api.Refused) problem = error;
    else throw error;
  } finally {
    running = null;
    setBusy(false);
    if (!answer.message.content) {
      // Nothing was said: as if it had not been sent, and what was typed is back.
      answer.remove();
      question.remove();
      box.value = [content, box.value].filter(Boolean).join("\n");
    }
  }
  if (problem) {
    answer.note("broken off");
    report(problem);
  } else {
    tell(counters.summary);
  }
}

async function receive(messages, answer) {
  const body = {
    model: find("model").value,
    messages,
    max_tokens: form.elements.most.valueAsNumber,
    temperature: form.elements.temperature.valueAsNumber,
    stream: true,
    inspect: true,
  };
  tell("Waiting for the server …");
  counters.begin();
  for await (const { choices, lacache } of api.chat(body, running.signal)) {
    const choice = choices[0];
    if (choice?.delta.content) answer.append(choice.delta.content);
    if (choice?.finish_reason === "length") answer.note("the answer reached its limit of tokens");
    if (lacache) learn(lacache);
  }
}

function learn({ prompt, seen, reused, read, new: written }) {
  if (prompt) state.prompt(prompt);
  if (seen !== undefined) {
    state.start(seen);
    tell(`Reading; ${plural(reused, "token")} of the text were known already.`);
  }
  if (read) {
    state.read(read);
    tell(`Reading: ${number(state.seen)} of ${plural(state.texts.length, "token")}`);
  }
  if (written) {
    state.write(written);
    counters.wrote(written.length);
    tell("Writing …");
  }
}

function setBusy(isBusy) {
  find("send").disabled = isBusy;
  find("stop").disabled = !isBusy;
  find("anew").disabled = isBusy;
  find("model").disabled = isBusy;
  talk.isBusy = isBusy;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
box.addEventListener("keydown", (event) => {
  // The Enter that ends the composition of a character is not meant for the page.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
find("stop").addEventListener("click", () => {
  running?.abort();
  box.focus();
});
find("anew").addEventListener("click", () => {
  talk.clear();
  pick(null);
  report(null);
  state.clear();
  counters.begin();
  tell("Ready.");
  box.focus();
});
find("model").addEventListener("change", (event) => state.use(event.target.value));
find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey(event.target.elements.key.value);
  connect();
});
connect();
