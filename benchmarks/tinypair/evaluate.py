"""Accuracy of the pair: each model alone, routed over thresholds, and routed at random.

    python benchmarks/tinypair/evaluate.py --small DIR --large DIR [--problems 400] [--seed 2]

Needs glimprouter with the extra ``hf`` for the routed rows. Seed 1 is the development set (choose
the threshold there), any other seed a test set.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BATCH = 50
MAX_NEW_TOKENS = 320
LIMITS = {"max_step_tokens": 64, "max_think_tokens": 320, "max_answer_tokens": 16}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way of routing over all problems: shares in [0, 1]."""

    accuracy: float
    large_steps: float
    large_tokens: float


@torch.inference_mode()
def answers_alone(model: Any, tokenizer: Any, problems: Sequence[Any]) -> list[str]:
    """The greedy answers of one model by plain generate, the text after ``</think>``."""
    model.eval()
    answers: list[str] = []
    for start in range(0, len(problems), BATCH):
        chats = [[{"role": "user", "content": p.prompt}] for p in problems[start : start + BATCH]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        answers += [text.partition("</think>")[2].strip() for text in texts]
    model.train()
    return answers


def accuracy_alone(model: Any, tokenizer: Any, problems: Sequence[Any]) -> float:
    """Share of the problems that the model alone answers exactly."""
    answers = answers_alone(model, tokenizer, problems)
    return sum(a == p.answer for a, p in zip(answers, problems, strict=True)) / len(problems)


def routed(model: Any, problems: Sequence[Any], **options: Any) -> Outcome:
    """Runs a ``RoutedModel`` over the problems."""
    results = model.generate([problem.prompt for problem in problems], **options)
    steps = [step for result in results for step in result.trace.steps]
    large = [step for step in steps if step.model == "large"]
    return Outcome(
        sum(r.answer == p.answer for r, p in zip(results, problems, strict=True)) / len(problems),
        len(large) / len(steps),
        sum(step.num_tokens for step in large) / sum(step.num_tokens for step in steps),
    )


@torch.inference_mode()
def routed_at_random(model: Any, problems: Sequence[Any], share: float, seed: int) -> Outcome:
    """The same loop with a coin instead of the entropy: ``route="manual"`` and ``decide``."""
    import glimprouter as gr
    from glimprouter.hf.engine.gather_runner import ModelRunner
    from glimprouter.hf.pair.prompts import encode_prompt

    coin = random.Random(seed)
    config = gr.RouterConfig(temperature=0.0, route="manual", **LIMITS)
    count = len(problems)
    router = gr.StepRouter(model.boundary, config, max_sequences=count)
    pair = (("small", model.small), ("large", model.large))
    runners = {name: ModelRunner(name, part, count) for name, part in pair}
    out = router.outputs(count)
    prompts = [encode_prompt(p.prompt, model.tokenizer, model.tokenizer).small for p in problems]
    rows = [router.open(substream=i) for i in range(count)]
    ids: dict[int, list[int]] = {row: list(prompts[i]) for i, row in enumerate(rows)}
    writers: dict[int, list[str]] = {row: [] for row in rows}
    answer_start: dict[int, int] = {}
    choices: list[bool] = []

    def take(row: int, index: int, writer: str) -> None:
        if out.token[index] >= 0:
            ids[row].append(int(out.token[index]))
            writers[row].append(writer)
        if out.forced[index]:
            ids[row] += model.boundary.close_ids
        if out.phase[index] == gr.Phase.ANSWER:
            answer_start.setdefault(row, len(ids[row]))

    while any(len(router.pending(name)) for name in runners):
        for name, runner in runners.items():
            for width in (1, None):  # decoding rows together, then those that catch up one by one
                pending = [
                    row
                    for row in router.pending(name).tolist()
                    if (len(ids[row]) - runner.cache.lengths[row] == 1) == (width == 1)
                ]
                for group in [pending] if width and pending else [[row] for row in pending]:
                    unseen = [ids[row][runner.cache.lengths[row] :] for row in group]
                    router.step(name, runner.forward(group, unseen).contiguous(), group, out)
                    for index, row in enumerate(group):
                        take(row, index, name)
        waiting = [row for row in rows if router.phase(row) == gr.Phase.AWAIT_DECISION]
        for row in waiting:
            large = coin.random() < share
            choices.append(large)
            router.decide("large" if large else "small", [row], out)
            take(row, 0, "small")
    right = sum(
        model.tokenizer.decode(ids[row][answer_start[row] :], skip_special_tokens=True).strip()
        == problem.answer
        for row, problem in zip(rows, problems, strict=True)
        if row in answer_start
    )
    tokens = [writer for row in rows for writer in writers[row]]
    return Outcome(right / count, sum(choices) / len(choices), tokens.count("large") / len(tokens))


def print_outcome(name: str, outcome: Outcome) -> None:
    """One line of the table."""
    print(
        f"{name:24} accuracy {outcome.accuracy:.3f}  large steps {outcome.large_steps:.3f}"
        f"  large tokens {outcome.large_tokens:.3f}",
        flush=True,
    )


def main() -> None:
    """Parses the command line and prints the table."""
    import task

    import glimprouter as gr
    from glimprouter.hf import RoutedModel

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=Path, required=True)
    parser.add_argument("--large", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.3, 0.5, 0.6, 0.75, 0.9])
    parser.add_argument("--random", type=float, nargs="*", default=[], help="shares of large steps")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = gr.RouterConfig(temperature=0.0, **LIMITS)
    model = RoutedModel.from_pretrained(
        arguments.small, arguments.large, dtype=torch.float32, config=config
    )
    problems = task.shipped.held_out_problems(arguments.problems, arguments.seed)
    print(f"{len(problems)} held-out problems, seed {arguments.seed}, greedy, fp32")
    print_outcome("small alone", routed(model, problems, route="small", answer_model="small"))
    print_outcome("large alone", routed(model, problems, route="large"))
    for threshold in arguments.thresholds:
        print_outcome(f"routed, tau {threshold:g}", routed(model, problems, threshold=threshold))
    for share in arguments.random:
        print_outcome(f"random {share:g}", routed_at_random(model, problems, share, seed=0))


if __name__ == "__main__":
    main()
