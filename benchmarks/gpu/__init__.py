"""What `benchmarks/gpu/run.py` runs: the kernels on a GPU against their references, then figures."""
