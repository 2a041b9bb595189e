// The page: sends messages and shows what the server returns.

import * as api from "./api.js";
import { Conversation } from "./conversation.js";
import { Counters } from "./counters.js";
import { Ladder } from "./ladder.js";
import { CacheState } from "./state.js";
import { TokenPane } from "./tokens.js";
import { describeToken, number, plural } from "./format.js";

const find = (id) => document.getElementById(id);

const state = new CacheState(api.inspect, show, report);
const ladder = new Ladder(find("ladder"), state, (index) => pick(index, true));
const tokens = new TokenPane(find("tokens"), state, (index) => pick(index, false));
const counters = new Counters(find, state, ladder);
const conversation = new Conversation(find("messages"), find("welcome"));
const form = find("compose");
const box = find("text");
let running = null;

function show() {
  counters.update();
  ladder.draw();
  tokens.update();
  describe();
}

function pick(index, isFromPicture) {
  ladder.picked = index;
  ladder.draw();
  tokens.pick(index, isFromPicture);
  describe();
}

function describe() {
  const { picked } = ladder;
  const isThere = picked !== null && picked < state.texts.length && state.answer;
  const description = isThere
    ? describeToken(picked, state.texts[picked], picked < state.seen ? state.layersWith(picked) : null)
    : "";
  // A screen reader reads a live region whenever it is set.
  if (find("token").textContent !== description) find("token").textContent = description;
}

function setStatus(message) {
  if (find("status").textContent !== message) find("status").textContent = message;
}

function report(error) {
  const message = error?.message ?? "";
  if (find("problem").textContent !== message) find("problem").textContent = message;
  find("problem").hidden = !error;
  if (!error) return;
  find("key").hidden = error.status !== 401;
  setStatus("Something went wrong.");
}

async function connect() {
  try {
    const names = await api.models();
    find("model").replaceChildren(...names.map((name) => new Option(name, name)));
    report(null);
    find("key").hidden = true;
    state.use(names[0]);
    setStatus("Ready.");
  } catch (error) {
    if (!(error instanceof api.RequestError)) throw error;
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
  const question = conversation.add("user", content);
  const messages = [...conversation.messages];
  const answer = conversation.add("assistant");
  running = new AbortController();
  setBusy(true);
  let problem = null;
  try {
    await receive(messages, answer);
  } catch (error) {
    if (error.name === "AbortError") answer.note("stopped");
    else if (error instanceof api.RequestError) problem = error;
    else throw error;
  } finally {
    running = null;
    setBusy(false);
    if (!answer.message.content) {
      // Without any answer, restore the page and the input to before the message was sent.
      answer.remove();
      question.remove();
      box.value = [content, box.value].filter(Boolean).join("\n");
    }
  }
  if (problem) {
    answer.note("interrupted");
    report(problem);
  } else {
    setStatus(counters.summary);
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
  setStatus("Waiting for the server …");
  counters.begin();
  for await (const { choices, lacache } of api.chat(body, running.signal)) {
    const choice = choices[0];
    if (choice?.delta.content) answer.append(choice.delta.content);
    if (choice?.finish_reason === "length") answer.note("the answer reached its limit of tokens");
    if (lacache) updateState(lacache);
  }
}

function updateState({ prompt, seen, reused, prefilled, new: generated }) {
  if (prompt) state.prompt(prompt);
  if (seen !== undefined) {
    state.start(seen);
    setStatus(`Prefill: ${plural(reused, "token")} from the prefix cache.`);
  }
  if (prefilled) {
    state.prefill(prefilled);
    setStatus(`Prefill: ${number(state.seen)} of ${plural(state.texts.length, "token")}`);
  }
  if (generated) {
    state.decode(generated);
    counters.add(generated.length);
    setStatus("Generating …");
  }
}

function setBusy(isBusy) {
  find("send").disabled = isBusy;
  find("stop").disabled = !isBusy;
  find("new").disabled = isBusy;
  find("model").disabled = isBusy;
  conversation.isBusy = isBusy;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
box.addEventListener("keydown", (event) => {
  // An Enter that ends the composition of a character does not send the message.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
find("stop").addEventListener("click", () => {
  running?.abort();
  box.focus();
});
find("new").addEventListener("click", () => {
  conversation.clear();
  pick(null);
  report(null);
  state.clear();
  counters.begin();
  setStatus("Ready.");
  box.focus();
});
find("model").addEventListener("change", (event) => state.use(event.target.value));
find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey(event.target.elements.key.value);
  connect();
});
connect();
