// Requests to the server, with every failure in words.

const KEY = "lacache-api-key";

export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

export async function models() {
  const answer = await (await request("v1/models")).json();
  return answer.data.map((model) => model.id);
}

export async function inspect(seen, model) {
  return (await request(`inspect?${new URLSearchParams({ seen, model })}`)).json();
}

export async function* chat(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers,
    body: JSON.stringify(body),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error.message);
    yield chunk;
  }
  throw new Refused("The connection to the server broke off. Is it still running?");
}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is it still running?");
  }
  if (!response.ok) throw new Refused(await reason(response), response.status);
  return response;
}

async function reason(response) {
  if (response.status === 401) {
    return sessionStorage.getItem(KEY)
      ? "The server refuses this API key. Enter the right one."
      : "The server asks for an API key. Enter it below.";
  }
  let message;
  try {
    message = (await response.json()).error.message;
  } catch {
    return `The server returned status ${response.status}.`;
  }
  return `The server refused the request: ${message}.`;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("The connection to the server broke off. Is it still running?");
    }
    if (piece.done) return;
    const parts = (rest + piece.value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) yield part.slice(6);
    }
  }
}
