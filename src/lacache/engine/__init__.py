"""Endless generation.

Where to begin reading:

- `engine`: what users call. `scheduler`: which text reads or writes when. `runner`: the forwards.
- `request`, `open_row`, `token_stream`: a text that waits, has a row, is read by its user.
- `session`, `snapshot`, `snapshot_file`: texts that are written in turns, forked, saved, loaded.
- `sampling`, `sampler`, `logprobs`: how the next token is chosen, and how likely it was.
- `conversation`, `chat_template`, `writer`, `text`, `stop`, `eos`: what the command line adds.
- `private_model`, `int8`, `cpu/`: what the engine changes in its own copy of a model's modules.
- `stream`, `cached_writer`: the same without an engine, on a cache of transformers.
"""
