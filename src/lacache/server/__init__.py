"""An HTTP server with OpenAI's API.

A request passes through these modules, in this order:

- `app`: the ASGI application and its middleware (host names, API key, body size, counts).
- `routes`: all routes, with `page/` for the inspector; `schemas` validate the bodies of requests,
  `errors` are the responses to exceptions.
- `service`: finds the model, tokenizes the prompt and makes a `completion` for each choice, on a
  sequence of its own.
- `engine_thread`: runs all completions of one model on its engine.
- `response`: turns the events of completions into OpenAI's format, and counts them (`metrics`).
- `prefix_cache` and `session_store`: keep the state of sequences between requests.

A client that disconnects: `routes` abort the `response`, which aborts its completions by
`engine_thread`; that thread finishes each `completion` before its next step, and the engine's
scheduler frees the batch slot.

`start` builds a service from engines and `settings`, and runs it at an address.
"""
