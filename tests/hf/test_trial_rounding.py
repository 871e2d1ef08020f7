"""A trial of models in narrow types: rounding is no fault, and hides none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from glimprouter.demo_pair import large_path, small_path
from glimprouter.hf.attention.paged import PagedPass
from glimprouter.hf.attention.trial import why_not_paged
from glimprouter.hf.trial.trial import Trial
from glimprouter.torch import AttentionOptions

PATHS = {"small": small_path(), "large": large_path()}  # trained: their logits are peaked
OTHER_TEXTS = (0, 7, 35, 63)


@pytest.fixture(params=OTHER_TEXTS)
def other_texts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial has other texts than it would have."""
    own = Trial._texts
    monkeypatch.setattr(
        Trial,
        "_texts",
        lambda self, schedule, number=0: own(self, schedule, number + request.param),
    )


def trained(name: str, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(PATHS[name]).to(dtype)


@pytest.mark.usefixtures("other_texts")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PATHS)
def test_a_trained_model_is_served_whatever_the_text(name: str, dtype: torch.dtype) -> None:
    assert why_not_paged(trained(name, dtype)) is None


@pytest.mark.usefixtures("other_texts")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PATHS)
def test_another_attention_is_refused(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that are half of what they should be."""
    own = PagedPass.attend

    def halved(self: PagedPass, layer: int, *states: Any) -> torch.Tensor:
        *heads, options, mask = states
        changed: AttentionOptions = options._replace(scale=options.scale / 2)
        return own(self, layer, *heads, changed, mask)

    monkeypatch.setattr(PagedPass, "attend", halved)
    assert "differ by" in str(why_not_paged(trained(name, dtype)))


def test_logits_that_are_rounding_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the model is refused: nobody could say whether its passes are right."""
    monkeypatch.setattr("glimprouter.hf.trial.trial._NOISES", 1e6)
    reason = str(why_not_paged(trained("small", torch.bfloat16)))
    assert reason == "its logits in torch.bfloat16 are rounding for the most part"
