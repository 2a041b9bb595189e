"""The engine's cache: buffers of fixed size for many sequences.

- `static_cache`: the cache with its batch slots; begins and commits each forward.
- `layout`: head groups, layers and types, and the bytes that they take.
- `kv_heads`: the regions of some KV heads, how they are compacted, and keys rotated.
- `storage`: rows of keys or values, and the regions of KV heads in them.
- `pool`: the storage that all head groups share, whose regions move.
- `rings`: storage of sliding-window layers.
- `compaction_ops`: the operations on stored rows that a compaction consists of.
- `attention`: what the model calls, and the base of the layers that compute it.
- `layers`: what the model sees as its cache in one forward; slots, masks and positions of a decode
  step.
- `sequence_tensors`: a sequence as plain tensors, for snapshots.
"""
