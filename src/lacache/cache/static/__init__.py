"""The engine's cache: buffers of fixed size for many sequences.

- `static_cache`: the cache with its batch slots; begins and commits each forward.
- `layout`: head groups, layers and types, and the bytes that they take.
- `kv_heads`: the buffers of some KV heads, how they are compacted, and keys rotated.
- `buffers`: storage in the model's type, in eight bits, and as a ring for sliding windows.
- `attention`: what the model calls, and the base of the layers that compute it.
- `layers`: what the model sees as its cache in one forward; slots, masks and positions of a decode
  step.
- `sequence_tensors`: a sequence as plain tensors, for snapshots.
"""
