"""Asides that are short of memory while other rows draft."""

from __future__ import annotations

import pytest

import hf_pairs
from glimprouter.config import ModelName
from glimprouter.policies import Glimpse
from hf_asides import Graded
from hf_runs import sector_bytes, written

pytestmark = pytest.mark.both_engines


class Alternating(Graded):
    """Every other step is the large model's, so that rows draft while others are asked about."""

    def before(self, glimpse: Glimpse) -> ModelName:
        return "large" if (glimpse.step + glimpse.substream) % 2 else "small"


@pytest.mark.parametrize("sectors", [13, 17, 25])
def test_rows_that_draft_lose_their_memory_to_an_aside(
    sectors: int, engine_under_test: str, pages_of_16: None
) -> None:
    if engine_under_test != "paged":
        pytest.skip("gathering takes the memory that it needs")
    pair = hf_pairs.pair_of("qwen3")
    model = pair.routed(drafts=3, temperature=0.8, max_think_tokens=50, max_answer_tokens=8)
    model.policy = Alternating(4.5, forced="keep")
    prompts = pair.prompts * 2
    want = [written(result) for result in model.generate(prompts)]
    model.kv_memory_bytes = sectors * sector_bytes(model)
    assert [written(result) for result in model.generate(prompts)] == want
