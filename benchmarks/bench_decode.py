"""Benchmark of decoding on pages against Hugging Face generate of the same model.

Usage: python benchmarks/bench_decode.py [--quick] [--json PATH]
"""

from script import main

if __name__ == "__main__":
    main("decode", __doc__)
