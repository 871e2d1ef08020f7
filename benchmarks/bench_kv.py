"""Benchmark of keys and values in pages: transfers against memcpy, catching up by k tokens.

Usage: python benchmarks/bench_kv.py [--quick] [--json PATH]
"""

from script import main

if __name__ == "__main__":
    main("kv", __doc__)
