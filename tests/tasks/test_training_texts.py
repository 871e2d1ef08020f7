"""Training texts of the pairs: what carries loss is right by the oracle, nothing is held out."""

from __future__ import annotations

import random

import pytest

from benchmark_scripts import script
from glimprouter.tasks import GeneratedTask, Problem, task_of

TEXTS = 300


@pytest.fixture(scope="module")
def training_texts() -> dict:  # type: ignore[type-arg]
    texts: dict = script("pairs", "training_texts").TRAINING_TEXTS  # type: ignore[type-arg]
    return texts


# Of the texts, and what share of their steps is wrong.
SLIPS = {
    "list_reduction": (0.03, 0.3),
    "arithmetic": (0.0, 0.0),
    "arithmetic_result_first": (0.0, 0.0),
    "search": (0.03, 0.3),
    "repair": (0.03, 0.3),
    "repair without slips": (0.0, 0.0),
}


@pytest.mark.parametrize("name", SLIPS)
def test_the_oracle_agrees_with_every_training_text(name: str, training_texts: dict) -> None:  # type: ignore[type-arg]
    task = task_of(name.partition(" ")[0])
    assert isinstance(task, GeneratedTask)
    generator = random.Random(7)
    verdicts: list[bool] = []
    for index in range(TEXTS):
        prompt, segments = training_texts[name].text(generator, short=index % 3 == 0)
        *steps, (closing, closing_carries) = segments
        problem = Problem(prompt.partition(" ")[2], prompt, closing.removeprefix("</think>\n\n"))
        assert task.split_of(problem) is None
        assert closing_carries
        assert closing.startswith("</think>\n\n")
        assert all(text.endswith(".\n\n") for text, _ in steps)
        flags = [carries for _, carries in steps]
        assert task.check_steps(problem, [text for text, _ in steps]) == flags
        verdicts += flags
    wrong = verdicts.count(False) / len(verdicts)
    least, most = SLIPS[name]
    assert least <= wrong <= most


def test_a_tokenizer_of_pairs_of_digits(training_texts: dict) -> None:  # type: ignore[type-arg]
    """The same merges otherwise: texts are as they were, and two digits may be one token."""
    tokenizer = script("pairs", "tokenizer")
    texts = training_texts["repair"]
    single, pairs = tokenizer.build(texts), tokenizer.build(texts, digits=2)
    assert len(pairs) - len(single) == tokenizer.VOCABULARY[2] - tokenizer.VOCABULARY[1]
    for number in range(10, 100):
        assert len(single.tokenize(f"{number}")) == 2
        assert len(pairs.tokenize(f"{number}")) == 1
    prompt, segments = texts.text(random.Random(5), short=False)
    text = prompt + "".join(part for part, _ in segments)
    for each in (single, pairs):
        assert each.decode(each(text)["input_ids"]) == text
        assert max(sum(c.isdigit() for c in token) for token in each.tokenize(text)) == (
            1 if each is single else 2
        )


def test_repair_has_many_wrong_lines_where_it_calculates(training_texts: dict) -> None:  # type: ignore[type-arg]
    generator = random.Random(3)
    calculated = wrong = 0
    for _ in range(1500):
        prompt, segments = training_texts["repair"].text(generator, short=False)
        claims = prompt.removeprefix("Check ").split(",")
        lines = [(text, carries) for text, carries in segments if "=" in text]
        own = [carries for text, carries in lines if text[:-3] not in claims]
        calculated += len(own)
        wrong += own.count(False)
    assert 0.25 < wrong / calculated < 0.30
