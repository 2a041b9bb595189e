"""OpenAI's API over HTTP.

Where to begin reading:

- `start`: from engines to a server that listens. `app`: what stands before the routes.
- `routes`, `session_routes`, `inspector`, `page/`: what can be asked. `schemas`, `documented`,
  `answers`, `logprobs`: in what format.
- `service`, `prompts`, `texts`: from a request to jobs, and from what is told of them to an answer.
- `job`, `origin`, `writing`, `engine_thread`: a text that waits, begins somewhere, is written.
- `state/`: what is kept of texts between requests.
"""
