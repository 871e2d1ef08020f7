"""Copies two checkpoints into the package, with the tokenizer and a generation config.

Usage: python benchmarks/pairs/ship.py --small DIR --large DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

PACKAGE = Path(__file__).parents[2] / "python/glimprouter/demo_pair"


def ship(source: Path, target: Path) -> int:
    """Writes bf16 weights and the tokenizer to the target; returns the bytes written."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return sum(file.stat().st_size for file in target.iterdir())


def main() -> None:
    """Parses the command line and ships both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=Path, required=True)
    parser.add_argument("--large", type=Path, required=True)
    arguments = parser.parse_args()
    total = sum(
        ship(source, PACKAGE / name)
        for name, source in (("small", arguments.small), ("large", arguments.large))
    )
    print(f"shipped {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
