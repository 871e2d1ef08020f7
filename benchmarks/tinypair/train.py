"""Trains one model of the embedded pair on data generated as it goes.

    python benchmarks/tinypair/train.py --model small --out DIR/small --seed 1 --steps 1100
    python benchmarks/tinypair/train.py --model large --out DIR/large --steps 1600 --bfloat16 \
        --threads 2

Prints the held-out accuracy (development problems, greedy) at every checkpoint.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import task
import tokenizer as tinypair_tokenizer
import torch
from evaluate import accuracy_alone
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

Batch = tuple[torch.Tensor, torch.Tensor]
DEVELOPMENT_SEED = 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """Shape and schedule of one model."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    muon_rate: float
    adamw_rate: float


RECIPES = {
    "small": Recipe(64, 2, 4, 128, 4e-3, 3e-3),
    "large": Recipe(192, 8, 6, 448, 3e-3, 2e-3),
}


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model; head size 32 in both, so that every serving engine takes the pair."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=recipe.feed_forward,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def encode_group(
    tokenizer: PreTrainedTokenizerFast, generator: random.Random, count: int, max_numbers: int
) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of ``count`` texts. Prompt and wrong steps carry no loss (label -100)."""
    pieces: list[str] = []
    layout: list[list[bool]] = []
    for _ in range(count):
        numbers = task.training_numbers(generator, max_numbers)
        prompt, segments = task.training_segments(numbers, generator)
        opening = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n"
        pieces += [opening, *(text for text, _ in segments)]
        layout.append([False, *(carries for _, carries in segments)])
    encoded = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    examples = []
    position = 0
    for flags in layout:
        ids: list[int] = []
        labels: list[int] = []
        for carries in flags:
            piece = encoded[position]
            position += 1
            ids += piece
            labels += piece if carries else [-100] * len(piece)
        examples.append(([*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]))
    return examples


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, batch_size: int
) -> Iterator[Batch]:
    """Fresh problems every batch, bucketed by length; at first only short lists."""
    generator = random.Random(seed)
    group = 16
    for start in range(0, steps, group):
        max_numbers = 4 if start < 0.12 * steps else task.shipped.MAX_NUMBERS
        examples = encode_group(tokenizer, generator, group * batch_size, max_numbers)
        examples.sort(key=lambda example: len(example[0]))
        order = list(range(group))
        generator.shuffle(order)
        for index in order[: steps - start]:
            chunk = examples[index * batch_size : (index + 1) * batch_size]
            length = -(-max(len(ids) for ids, _ in chunk) // 16) * 16
            ids = torch.full((batch_size, length), tokenizer.pad_token_id)
            labels = torch.full((batch_size, length), -100)
            for row, (row_ids, row_labels) in enumerate(chunk):
                ids[row, : len(row_ids)] = torch.tensor(row_ids)
                labels[row, : len(row_labels)] = torch.tensor(row_labels)
            yield ids, labels


def make_optimizers(model: Qwen3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.muon_rate,
            momentum=0.95,
            weight_decay=0.05,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=recipe.adamw_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, steps: int) -> float:
    """60 steps of warm-up, flat to 55 %, then linear to zero."""
    decay = (steps - step) / (0.45 * steps)
    return min(1.0, (step + 1) / 60, decay)


def train(arguments: argparse.Namespace) -> None:
    """Trains, with a checkpoint and its development accuracy every ``--every`` steps."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    tokenizer = tinypair_tokenizer.load_or_build(out.parent / "tokenizer")
    recipe = RECIPES[arguments.model]
    model = build_model(recipe, tokenizer)
    print(f"{arguments.model}: {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    optimizers = make_optimizers(model, recipe)
    forward = torch.compile(model, dynamic=True) if arguments.compile else model
    started = time.perf_counter()
    tokens = 0
    stream = batches(tokenizer, arguments.seed, arguments.steps, arguments.batch_size)
    for step, (ids, labels) in enumerate(stream):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group.setdefault("base_lr", group["lr"])
                group["lr"] = group["base_lr"] * rate_factor(step, arguments.steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bfloat16):
            logits = forward(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens += ids.numel()
        if step % 20 == 0:
            rate = tokens / (time.perf_counter() - started)
            print(f"step {step} loss {loss.item():.4f} {rate:.0f} tokens/s", flush=True)
        if (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            save(model, tokenizer, out / f"step{step + 1}")
            problems = task.shipped.held_out_problems(arguments.problems, DEVELOPMENT_SEED)
            accuracy = accuracy_alone(model, tokenizer, problems)
            print(f"step {step + 1}: development accuracy {accuracy:.3f}", flush=True)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes a bf16 copy that ``from_pretrained`` loads; training goes on in fp32."""
    copy = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(RECIPES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--every", type=int, default=300, help="steps between checkpoints")
    parser.add_argument("--problems", type=int, default=100, help="development problems")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true", help="bf16 matrix products")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
