"""Benchmark of the call overhead of StepRouter.step from Python.

Usage: python benchmarks/bench_step.py [--quick] [--json PATH]
"""

from script import main

if __name__ == "__main__":
    main("step", __doc__)
