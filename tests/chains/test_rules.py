"""Rules around a chain, each against its formula in float64."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimprouter import chains
from glimprouter.chains.explorers import candidate_list
from hf_pairs import pair_of
from hf_runs import routed


def small() -> Any:
    return pair_of("trained").small


def logprobs(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    """Of the last position, in float64."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1].double()
    return torch.log_softmax(logits, -1).numpy()


@given(st.lists(st.sampled_from(["a", " a", "b", "", " ", "c\n"])))
@settings(deadline=None)
def test_majority(answers: list[str]) -> None:
    kept = [answer.strip() for answer in answers if answer.strip()]
    vote = chains.majority(answers)
    assert vote.cast == len(kept)
    if not kept:
        assert vote == ("", 0, 0)
        return
    counts = Counter(kept)
    assert vote.votes == max(counts.values())
    ties = [answer for answer in kept if counts[answer] == vote.votes]
    assert vote.answer == ties[0]


def test_explorers_are_the_small_model_and_the_large_one_reads_them() -> None:
    model, _ = routed("trained")
    problem = "Reduce 18,39,12"
    exploration = chains.explore_and_synthesize(model, problem, explorers=3, seed=9)
    alone = model.generate([problem] * 3, [9, 10, 11], route="small", answer_model="small")
    answers = [result.answer for result in alone]
    assert [solution.answer for solution in exploration.solutions] == answers
    assert exploration.vote == chains.majority(answers)
    message = candidate_list(problem, answers)
    assert exploration.synthesis.trace.prompt == message
    assert all(answer in message for answer in answers)
    assert {step.model for step in exploration.synthesis.trace.steps} == {"large"}


def test_first_token_neighbours_vote_as_by_hand() -> None:
    generator = np.random.default_rng(3)
    points = generator.normal(size=(30, 12))
    labels = [("stop", "go on", "thanks")[n % 3] for n in range(30)]
    rows = generator.normal(size=(8, 12))
    neighbours = chains.FirstTokenNeighbours(points, labels, neighbours=1)
    nearest = [int(np.argmin(((points - row) ** 2).sum(1))) for row in rows]
    assert neighbours.labels_of(rows) == [labels[n] for n in nearest]
    assert neighbours.labels_of(points) == labels
    with pytest.raises(ValueError, match="the reference set has 12 tokens, these rows 11"):
        neighbours.labels_of(rows[:, :11])
    with pytest.raises(ValueError, match="must be finite"):
        neighbours.labels_of(np.full((1, 12), -np.inf))
    with pytest.raises(ValueError, match="30 references have 2 labels"):
        chains.FirstTokenNeighbours(points, labels[:2])
    with pytest.raises(ValueError, match=r"must lie in \[1, 30\], got 31"):
        chains.FirstTokenNeighbours(points, labels, neighbours=31)


def test_first_token_logprobs() -> None:
    prompts = [[5, 9, 11], [7]]
    rows = chains.first_token_logprobs(small(), prompts)
    for row, ids in zip(rows, prompts, strict=True):
        np.testing.assert_allclose(row, logprobs(small(), ids), atol=2e-5)
    with pytest.raises(ValueError, match="none of them empty"):
        chains.first_token_logprobs(small(), [[1], []])


def test_self_reward_reads_one_log_probability() -> None:
    texts = [[5, 9, 11], [7, 8]]
    rewards = chains.last_token_self_reward(small(), texts, 40, beta=0.2, reference=-12.0)
    want = [0.2 * (logprobs(small(), ids)[40] + 12.0) for ids in texts]
    np.testing.assert_allclose(rewards, want, atol=1e-5)
    assert chains.self_reward(-13.0) == pytest.approx(1.0)
    assert chains.self_reward(-math.inf) == -math.inf
    with pytest.raises(ValueError, match="at most 0"):
        chains.self_reward(0.5)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        chains.last_token_self_reward(small(), texts, 10**6)


def test_a_router_learns_what_the_features_say() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(400, 6))
    needs_long = features[:, 2] + 0.3 * generator.normal(size=400) > 0
    router = chains.PreInferenceRouter(features[:200], needs_long[:200].tolist())
    right = (router.chances(features[200:]) > 0.5) == needs_long[200:]
    assert right.mean() > 0.85
    with pytest.raises(ValueError, match="of one kind"):
        chains.PreInferenceRouter(features[:3], [True] * 3)


@pytest.mark.parametrize("tokens", [0, 2])
def test_features_are_the_last_hidden_state(tokens: int) -> None:
    model, prompts = small(), [[5, 9, 11], [7]]
    rows = chains.pre_inference_features(model, prompts, tokens=tokens)
    for row, ids in zip(rows, prompts, strict=True):
        seen = list(ids)
        for _ in range(tokens):
            seen.append(int(logprobs(model, seen).argmax()))
        with torch.inference_mode():
            states = model.model(torch.tensor([seen])).last_hidden_state[0, -1]
        np.testing.assert_allclose(row, states.float().numpy(), atol=1e-5)


def test_step_importance_is_the_rise_of_the_answers_perplexity() -> None:
    model, prompt, answer = small(), [5, 9], [11, 12, 13]
    steps = [[20, 21], [22], [23, 24, 25]]

    def mean_loss(kept: list[list[int]]) -> float:
        text = [*prompt, *(token for step in kept for token in step)]
        losses = []
        for token in answer:
            losses.append(-logprobs(model, text)[token])
            text.append(token)
        return float(np.mean(losses))

    whole = mean_loss(steps)
    found = chains.step_importance(model, prompt, steps, answer)
    for index, importance in enumerate(found):
        want = mean_loss([step for n, step in enumerate(steps) if n != index]) - whole
        assert (importance.index, importance.rise) == (index, pytest.approx(want, abs=1e-4))
    bound = sorted(importance.rise for importance in found)[0]
    kept = chains.pruned(["a", "b", "c"], found, bound)
    assert kept == [text for text, i in zip("abc", found, strict=True) if i.rise > bound]
    assert len(kept) == 2
    with pytest.raises(ValueError, match="at least one id each"):
        chains.step_importance(model, prompt, steps, [])


def test_length_harmonizing_rewards() -> None:
    rewards = chains.length_harmonizing_rewards(
        [50, 200, 10_000, 10], [True, True, False, True], [80, 120], [True, False], alpha=2.0
    )
    np.testing.assert_allclose(rewards, [1.0 + 1.0, -0.5 + 1.0, -1.99, 4.0])
    lowest = chains.length_harmonizing_rewards([100], [False], [100], [True], alpha=9.0)
    assert lowest.tolist() == [-2.0]
    with pytest.raises(ValueError, match="chains must have lengths >= 1"):
        chains.length_harmonizing_rewards([0], [True], [1], [True], alpha=1.0)
