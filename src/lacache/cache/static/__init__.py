"""The engine's cache: buffers of fixed size for many sequences.

- `static_cache`: the cache with its batch slots; begins and commits each forward.
- `layout`: head groups, layers and types, and the bytes that they take.
- `kv_heads`: the buffers of some KV heads, how they are compacted, and keys rotated.
- `buffers`: storage in the model's type, in eight bits, and as a ring for sliding windows.
- `decode_inputs`: slots, masks and positions of a decode step.
- `layers`: what the model sees as its cache in one forward; `attention` is what it calls.
- `sequence_tensors`: a sequence as plain tensors, for snapshots.
"""
