"""Benchmark of sampling at temperature 0.6 and top-p 0.95 against torch's own chain.

Usage: python benchmarks/bench_sampling.py [--quick] [--json PATH]
"""

from script import main

if __name__ == "__main__":
    main("sampling", __doc__)
