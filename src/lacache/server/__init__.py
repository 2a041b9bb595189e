"""An HTTP server with OpenAI's API.

Start reading here:

- `start` builds a service from engines and runs it; `settings` has its options.
- `app`, `middleware` and `errors` are the ASGI application around the routes.
- `routes`, `session_routes` and `inspector` (with `page/`) are the routes; `schemas` are the
  bodies of requests, `answers` and `logprobs` those of responses.
- `service`, `prompts` and `texts` turn a request into jobs, and their events into a response.
- `job`, `origin`, `writing` and `engine_thread` run the jobs on an engine.
- `state/` stores what is kept between requests: the prefix cache and named sessions.
"""
