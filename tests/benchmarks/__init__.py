"""Benchmarks that print: ``python -m benchmarks``.

    step_time    IsoAdam's and Muon's step over Adam's
    matmul       the model's floating-point rate over the machine's matrix products'
    throughput   a run's step and a sweep's runs per second over a plain per-step jit loop
    nanogpt      a run's step over the same model's in PyTorch (the extra ``benchmark``)

Times that are compared are taken in turn, in one process.
"""
