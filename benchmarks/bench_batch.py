"""Benchmark of the demo pair: alone, in a batch of sixteen, beside generate of the large model.

Usage: python benchmarks/bench_batch.py [--quick] [--json PATH]
"""

from script import main

if __name__ == "__main__":
    main("batch", __doc__)
