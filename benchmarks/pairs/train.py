"""Trains one model of a pair on texts drawn as it goes.

    python benchmarks/pairs/train.py --pair search --model small --seed 1 --out DIR

The model is written to DIR/search/small-1 (the large one of seed 0 to large-0), with its accuracy
on development problems in accuracy.json; copies under way lie in a folder ``checkpoints`` there.
Training ends at the first copy that is good enough (recipes.py), ``--all-steps`` goes on: with it
``--pair list_reduction`` trains the embedded pair (small: seed 1, large: seed 0, two threads).
Needs glimprouter with the extra ``hf``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizer as pair_tokenizer
import torch
from accuracy import accuracy_alone
from recipes import GAPS, HEAD_SIZE, PAIRS, Recipe
from training_texts import TRAINING_TEXTS, TrainingTexts
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from glimprouter.demo_pair import small_path
from glimprouter.tasks import task_of

Batch = tuple[torch.Tensor, torch.Tensor]
BATCH_SIZE = 32
GROUP = 16  # batches whose texts are drawn together and sorted by length
FEW, NEAR = 50, 0.15  # so many problems tell that a model is not yet near to being good enough
SHORT_SHARE = 0.12  # of the steps, at the beginning, see short problems only


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=2,
        head_dim=HEAD_SIZE,
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
    tokenizer: PreTrainedTokenizerFast,
    family: TrainingTexts,
    generator: random.Random,
    count: int,
    short: bool,
) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of ``count`` texts. Prompt and wrong steps carry no loss (label -100)."""
    pieces: list[str] = []
    layout: list[list[bool]] = []
    for _ in range(count):
        prompt, segments = family.text(generator, short)
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
    tokenizer: PreTrainedTokenizerFast, family: TrainingTexts, seed: int, steps: int
) -> Iterator[Batch]:
    """Fresh problems every batch, bucketed by length; at first only short ones."""
    generator = random.Random(seed)
    for start in range(0, steps, GROUP):
        short = start < SHORT_SHARE * steps
        examples = encode_group(tokenizer, family, generator, GROUP * BATCH_SIZE, short)
        examples.sort(key=lambda example: len(example[0]))
        order = list(range(GROUP))
        generator.shuffle(order)
        for index in order[: steps - start]:
            chunk = examples[index * BATCH_SIZE : (index + 1) * BATCH_SIZE]
            length = -(-max(len(ids) for ids, _ in chunk) // 16) * 16
            ids = torch.full((BATCH_SIZE, length), tokenizer.pad_token_id)
            labels = torch.full((BATCH_SIZE, length), -100)
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


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scales the learning rates that the optimizers were built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])
            group["lr"] = group["base_lr"] * factor


def loss_of(model: Any, ids: torch.Tensor, labels: torch.Tensor, bfloat16: bool) -> torch.Tensor:
    """Mean cross-entropy over the tokens that carry loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
    )


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes a bf16 copy that ``from_pretrained`` loads; training goes on in fp32."""
    copy = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def update(
    model: Any, optimizers: list[torch.optim.Optimizer], batch: Batch, bfloat16: bool
) -> float:
    """One step of training; returns the loss before it."""
    loss = loss_of(model, *batch, bfloat16)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def train(arguments: argparse.Namespace) -> Path:
    """Trains, with a copy and its development accuracy every ``--every`` steps."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    pair = PAIRS[arguments.pair]
    task, family = task_of(pair.task), TRAINING_TEXTS[pair.texts or pair.task]
    recipe = pair.recipe(arguments.model)
    out: Path = arguments.out / arguments.pair / f"{arguments.model}-{arguments.seed}"
    # Models of list_reduction pair up with those that are shipped.
    owner = pair.large_of or arguments.pair
    known = small_path() if owner == "list_reduction" else arguments.out / owner / "tokenizer"
    owned = PAIRS[owner]
    tokenizer = pair_tokenizer.load_or_build(known, TRAINING_TEXTS[owned.task], owned.digits)
    problems = task.problems(arguments.problems, "development")
    model = build_model(recipe, tokenizer)
    print(f"{out}: {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    optimizers = make_optimizers(model, recipe)
    started, cpu_started = time.perf_counter(), time.process_time()
    done, tokens, accuracy = 0, 0, 0.0
    for batch in batches(tokenizer, family, arguments.seed, recipe.steps):
        set_rates(optimizers, rate_factor(done, recipe.steps))
        loss = update(model, optimizers, batch, recipe.bfloat16)
        done += 1
        tokens += batch[0].numel()
        if done % 25 == 0:
            rate = tokens / (time.perf_counter() - started)
            print(f"step {done} loss {loss:.4f} {rate:.0f} tokens/s", flush=True)
        if done % arguments.every == 0 or done == recipe.steps:
            save(model, tokenizer, out / "checkpoints" / f"step{done}")
            accuracy = accuracy_alone(model, tokenizer, task, problems[:FEW])
            if accuracy > recipe.enough - NEAR or done == recipe.steps:
                accuracy = accuracy_alone(model, tokenizer, task, problems)
            print(f"step {done}: development accuracy {accuracy:.3f}", flush=True)
            if accuracy >= recipe.enough and not arguments.all_steps:
                break
    report = {
        "steps": done,
        "tokens": tokens,
        "seconds": round(time.perf_counter() - started),
        "processor_seconds": round(time.process_time() - cpu_started),
        "development": accuracy,
        "development_problems": len(problems),
    }
    save(model, tokenizer, out)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    (out / "accuracy.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{out}: {json.dumps(report)}", flush=True)
    return out


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", choices=PAIRS, required=True)
    parser.add_argument("--model", choices=("small", "large", *GAPS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all-steps", action="store_true", help="go on when it is good enough")
    parser.add_argument("--every", type=int, default=50, help="steps between copies")
    parser.add_argument("--problems", type=int, default=200, help="development problems")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.model == "large" and (owner := PAIRS[arguments.pair].large_of) is not None:
        parser.error(f"{arguments.pair} takes the large model of {owner}; train that one")
    train(arguments)


if __name__ == "__main__":
    main()
