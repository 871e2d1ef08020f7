"""Accuracy of one model alone on held-out problems, with plain Hugging Face generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

BATCH = 50
MAX_NEW_TOKENS = 320


@torch.inference_mode()
def answers_alone(model: Any, tokenizer: Any, problems: Sequence[Any]) -> list[str]:
    """The greedy answers, the text after ``</think>``."""
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
