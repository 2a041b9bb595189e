"""Ways to bound a cache, as the harness runs them: one small file each."""
