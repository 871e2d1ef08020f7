"""How many problems a model answers right, alone and greedily.

python benchmarks/pairs/accuracy.py --task search --model DIR [--split report] [--problems 400]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from glimprouter.tasks import Problem, Task, task_names, task_of
from glimprouter.tasks.base import SPLITS, Split

BATCH = 50
MAX_NEW_TOKENS = 320


@torch.inference_mode()
def answers_alone(model: Any, tokenizer: Any, problems: Sequence[Problem]) -> list[str]:
    """The greedy answers of one model by plain generate, the text behind ``</think>``."""
    training = model.training
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
    model.train(training)
    return answers


def accuracy_alone(model: Any, tokenizer: Any, task: Task, problems: Sequence[Problem]) -> float:
    """Share of the problems that the model alone answers right, in [0, 1]."""
    answers = answers_alone(model, tokenizer, problems)
    pairs = zip(problems, answers, strict=True)
    return sum(task.is_correct(problem, answer) for problem, answer in pairs) / len(problems)


def accuracy_of(directory: Path, task: Task, split: Split, count: int) -> float:
    """The same of a model on disk, in float32, on the first problems of a split."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return accuracy_alone(model, tokenizer, task, task.problems(count, split))


def main() -> None:
    """Parses the command line and prints the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=task_names(), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="development")
    parser.add_argument("--problems", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = task_of(arguments.task)
    accuracy = accuracy_of(arguments.model, task, arguments.split, arguments.problems)
    print(f"{arguments.problems} {arguments.split} problems: accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
