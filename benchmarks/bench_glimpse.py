"""Benchmark of the greedy glimpse: time, bandwidth, ratio to torch.sum and to the torch chain.

Usage: python benchmarks/bench_glimpse.py [--quick] [--json PATH]
"""

from script import main

if __name__ == "__main__":
    main("glimpse", __doc__)
