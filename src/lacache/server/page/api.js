// Requests to the server, and messages for their failures.

const KEY = "lacache-api-key";

export class RequestError extends Error {
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
    if (chunk.error) throw new RequestError(chunk.error.message);
    yield chunk;
  }
  throw new RequestError("The connection to the server was lost. Is it running?");
}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server cannot be reached. Is it running?");
  }
  if (!response.ok) throw new RequestError(await reason(response), response.status);
  return response;
}

async function reason(response) {
  if (response.status === 401) {
    return sessionStorage.getItem(KEY)
      ? "This API key is wrong. Enter the key of this server."
      : "This server needs an API key. Enter it below.";
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
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError("The connection to the server was lost. Is it running?");
    }
    if (part.done) return;
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ")) yield event.slice(6);
    }
  }
}
