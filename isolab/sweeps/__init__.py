"""Many runs: what to train, in which batches, and where."""
