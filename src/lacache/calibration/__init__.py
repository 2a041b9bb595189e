"""Which KV heads of a model need a long history, measured by probes without gradients."""
