"""The pair that the GPU suite measures: what follows which token, and how often both agree."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import glimprouter as gr
from glimprouter.bench.acceptance import overlap

FOLDER = str(Path(__file__).parents[2] / "benchmarks" / "gpu")
MODELS = ("small", "large")


@pytest.fixture(scope="module")
def suite() -> Any:
    sys.path.insert(0, FOLDER)
    try:
        import agreeing_pair
        import models
        import token_chain
    finally:
        sys.path.remove(FOLDER)
    small, large = (models.build(f"toy pair, {name}", torch.device("cpu")) for name in MODELS)
    chain = token_chain.TokenChain(small.config.vocab_size)
    pair = agreeing_pair.AgreeingPair(small, large, chain)
    return SimpleNamespace(
        agreeing=agreeing_pair, chains=token_chain, small=small, large=large, chain=chain, pair=pair
    )


def text_of(chain: Any, start: int, tokens: int, seed: int) -> list[int]:
    """Ids behind the opening of a place, each drawn from what may follow the one before."""
    generator = np.random.default_rng(seed)
    ids = [int(chain.openings[start])]
    for _ in range(tokens):
        ids.append(int(chain.following[generator.integers(3), ids[-1]]))
    return ids[1:]


@pytest.mark.parametrize("start", [0, 100])
def test_every_text_has_the_recorded_steps(suite: Any, start: int) -> None:
    tokenizer = suite.chain.tokenizer()
    boundary = gr.StepBoundary.from_tokenizer(
        tokenizer, think_start=None, think_end=None, eos_token_ids=[]
    )
    assert boundary.vocab_size == suite.chain.vocabulary
    names = tokenizer.convert_ids_to_tokens(text_of(suite.chain, start, suite.chains.CYCLE, seed=1))
    ends = [place for place, name in enumerate(names) if name.endswith("\n\n")]
    lengths = [length for length, _ in suite.chains.STEPS]
    expected = np.cumsum(lengths) - 1 - start
    assert ends == sorted(np.where(expected < 0, expected + suite.chains.CYCLE, expected).tolist())
    assert suite.chains.CYCLE / len(lengths) == pytest.approx(27.8)
    assert 19 <= np.median(lengths) <= 20
    for hardness, share in ((("hard",), 0.15), (("hard", "harder"), 0.25)):
        chosen = [length for length, found in suite.chains.STEPS if found in hardness]
        assert len(chosen) / len(lengths) == share
        assert sum(chosen) / suite.chains.CYCLE == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_logits_are_those_of_the_last_token_to_the_bit(suite: Any, name: str) -> None:
    model, members = getattr(suite, name), suite.chain.members
    texts = [members[3:40, 0], members[90:96, 1]]
    for last in (int(members[7, 2]), int(suite.chain.openings[5])):
        signs = model.get_input_embeddings().weight[last].double().sign()
        exact = (model.get_output_embeddings().weight.double() @ signs).to(torch.bfloat16)
        for text in texts:
            ids = torch.cat([text, torch.tensor([last])])[None]
            assert torch.equal(model(input_ids=ids).logits[0, -1], exact)


@torch.inference_mode()
def test_the_small_model_is_mistaken_behind_the_share_that_was_set(suite: Any) -> None:
    chain, members = suite.chain, suite.chain.members.flatten()
    clear = members[chain.margins[members] > 3]  # where the noise does not reach
    for share in (0.0, 0.4):
        suite.pair.set_mistaken(share)
        wrong = chain.lots[clear] < share
        assert float(wrong.float().mean()) == pytest.approx(share, abs=0.05)
        for model, places in ((suite.small, wrong), (suite.large, torch.zeros_like(wrong))):
            signs = model.get_input_embeddings().weight[clear].sign()
            favoured = (signs @ model.get_output_embeddings().weight.T).argmax(-1)
            expected = torch.where(places, chain.following[2, clear], chain.following[0, clear])
            assert float((favoured == expected).float().mean()) > 0.99


@pytest.mark.parametrize("wanted", [0.75, 0.6])
def test_the_agreement_that_is_set_is_reached(suite: Any, wanted: float) -> None:
    before = [token for seed in range(4) for token in text_of(suite.chain, 0, 139, seed)]
    reached = suite.pair.calibrate(wanted, before, seed=3)
    assert reached == pytest.approx(wanted, abs=0.04)
    some = torch.tensor(before[::8])
    logits = [
        (model.get_input_embeddings().weight[some].sign() @ model.get_output_embeddings().weight.T)
        .detach()
        .float()
        .numpy()
        for model in (suite.small, suite.large)
    ]
    rows = zip(*logits, strict=True)
    bound = float(np.mean([overlap(*row, suite.agreeing.SAMPLING) for row in rows]))
    assert reached <= bound + 0.08  # no two draws are equal more often


def test_an_agreement_beyond_the_noise_is_refused(suite: Any) -> None:
    with pytest.raises(ValueError, match="at most"):
        suite.pair.calibrate(0.999, text_of(suite.chain, 0, 139, seed=0), seed=3)


def test_pairs_that_could_not_be_exact_are_refused(suite: Any) -> None:
    with pytest.raises(ValueError, match=r"needs 2224 ids or more, got 2000"):
        suite.chains.TokenChain(2000)
    with pytest.raises(ValueError, match="4096 embeddings, 3000 ids in the table"):
        suite.agreeing.AgreeingPair(suite.small, suite.large, suite.chains.TokenChain(3000))
