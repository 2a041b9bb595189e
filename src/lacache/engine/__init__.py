"""The engine: continuous batching over one model, with a cache of constant size per sequence.

Reading order:

- `engine`: the interface for users. `sequence`: one prompt and its completion, with its status,
  and the validation of both.
- `scheduler`: the queue and the batch slots; a step is schedule, run, sample. `runner`: forwards.
- `sampling`, `sampler`: settings of sampling; logits to the next token and its log probability.
- `session`: a sequence that keeps its batch slot; `snapshot`, `snapshot_file`: its state, saved.
- `detokenizer`: text from tokens, and stop rules; `conversation`: chats and their template.
- `private_model`, `int8`, `cpu/`: what the engine changes in its own copy of the model's modules.
- `generator`: the interface of a text generator; `sequence_stream`: tokens of a sequence;
  `cache_stream`: the same interface without an engine, on a cache of transformers.
"""
