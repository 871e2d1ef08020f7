"""Mixtures of experts in a narrow type: rounding that turns a choice is told from a wrong pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MixtralForCausalLM

from families import build, config_of
from glimprouter.hf.attention.trial import why_not_paged
from glimprouter.hf.engine.gather_runner import why_not_gathered
from glimprouter.hf.trial.selections import of_all, recorded, repeated
from glimprouter.hf.trial.trial import Trial
from wrong_models import IgnoresPositions

# With these weights rounding turns choices: without them the trial sees 0.3 to 0.7 of the spread.
TURNED = ("gpt_oss", "qwen3_moe", "mixtral")


class MixtralWithoutPositions(IgnoresPositions, MixtralForCausalLM):
    """Every pass begins at position 0."""


class ForgetsTheFirst(MixtralForCausalLM):
    """Where a pass goes on from another, its last token is at position 0."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **options: Any) -> Any:
        if position_ids is not None and int(position_ids.flatten()[0]) > 0:
            position_ids = torch.cat([position_ids[:, :-1], position_ids[:, :1] * 0], dim=1)
        return super().forward(input_ids, position_ids=position_ids, **options)


class TokensChoose(torch.nn.Module):
    """Scores are its input: of ``[N, E]`` the two best experts of each token."""

    def forward(self, scores: torch.Tensor, dim: int = -1) -> Any:
        return scores.topk(2, dim=dim) if dim == -1 else torch.topk(input=scores, k=2, dim=dim)


@pytest.mark.parametrize("family", TURNED)
def test_a_choice_that_rounding_turns_is_no_fault(family: str) -> None:
    model = build(family).to(torch.bfloat16)
    assert why_not_paged(model) is None
    assert why_not_gathered(model, Trial(model)) is None


@pytest.mark.parametrize("family", TURNED)
def test_it_is_the_choice_that_differs(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to themselves the passes are too far from the model's own: the test above can fail."""
    monkeypatch.setattr("glimprouter.hf.trial.trial.of_all", lambda passes: [])
    monkeypatch.setattr("glimprouter.hf.trial.trial._NOISES", 0.0)  # or nothing would be told
    assert "differ by" in str(why_not_paged(build(family).to(torch.bfloat16)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [MixtralWithoutPositions, ForgetsTheFirst])
def test_a_wrong_pass_with_the_right_choices_is_refused(kind: Any, dtype: torch.dtype) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model = kind(config_of("mixtral")).eval().to(dtype)
        assert "differ by" in str(why_not_paged(model))


@pytest.mark.parametrize("window", [24, 300])
def test_a_window_that_only_the_mask_knows(window: int) -> None:
    model = build("phimoe", sliding_window=window).to(torch.bfloat16)
    assert "differ by" in str(why_not_paged(model))


def test_a_token_chooses_as_the_nearest_did() -> None:
    """However rounding has moved its scores, and in whatever order the tokens come."""
    chooser = TokensChoose()
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 8, generator=generator)
    scores[:, 6:] = -torch.inf  # a group that is masked
    scores[5] = torch.tensor([1.0, 0.5, 0.5 + 1e-4, 0, 0, 0, -torch.inf, -torch.inf])
    with recorded(chooser) as own:
        for _ in range(2):  # the last pass counts
            wanted = chooser(scores).indices
    assert [call.indices.tolist() for call in own] == [wanted.tolist()]
    order = torch.randperm(40, generator=generator)
    moved = scores[order] + 1e-3 * torch.randn(40, 8, generator=generator)
    moved[order == 5, 1] = 0.6  # another choice than the recorded one
    assert not torch.equal(chooser(moved).indices, wanted[order])
    with repeated(chooser, of_all([own, own])):
        values, indices = chooser(moved.view(4, 10, 8))
    assert torch.equal(indices.view(40, 2), wanted[order])
    assert torch.equal(values.view(40, 2), moved.gather(-1, wanted[order]))
    assert not torch.equal(chooser(moved).indices, wanted[order])  # and no longer


def test_other_choices_are_left_alone() -> None:
    """Of another width, along another dimension, of one row, or more of them than were recorded."""
    chooser = TokensChoose()
    scores = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    with recorded(chooser) as own:
        chooser(scores)
    with repeated(chooser, own):
        assert torch.equal(chooser(-scores[:, :7]).indices, (-scores[:, :7]).topk(2).indices)
        along = (-scores).argsort(dim=0, descending=True)[:2]
        assert torch.equal(chooser(-scores, 0).indices, along)
        two = scores[:2]  # as many tokens as are chosen: the shapes alone do not tell
        assert torch.equal(chooser(two, 0).indices, two.argsort(dim=0, descending=True))
        assert torch.equal(chooser(-scores[0]).indices, (-scores[0]).topk(2).indices)
        assert torch.equal(chooser(scores, 1).indices, own[0].indices)  # by another name
        assert torch.equal((-scores).topk(2).indices, chooser_alone(-scores))
    with recorded(chooser) as narrower:
        chooser(scores[:, :7])
    assert of_all([own, narrower]) == of_all([own, [*own, *own]]) == []


def chooser_alone(scores: torch.Tensor) -> torch.Tensor:
    """The two best of each token, without top-k."""
    return scores.argsort(dim=-1, descending=True)[:, :2]
