"""The GPU suite: build, parity, memory checks and op benchmarks on a machine with a GPU and no network.

    make gpu-wheels                                  # before, on a machine with a network
    python3 benchmarks/gpu_suite --out build/gpu

``docs/gpu_suite.md`` says what comes out. ``parts.py`` has the table of parts, ``steps.py`` runs one. Only the standard
library: this runs before anything is installed.
"""
