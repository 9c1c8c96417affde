"""The Transformer, the corpora that it reads, and probes of what happens inside of it."""
