"""A small and a large model with random weights that agree as often as they are told to.

Random models have flat distributions of their own, and no draft of one is what the other draws. So
embeddings and heads are written such that the next token follows a table that both share
(`token_chain.py`), exactly, and at the full cost of every matrix product, with nothing hooked in:

- Embeddings are random signs, so large that what the layers add to them is less than half a unit in
  the last place of bfloat16: the layers compute all that they always compute, the residual stream
  stays what it was, and the last norm gives the signs of the last token whatever came before.
- The head's row of a token is the sum of the signs of those tokens that it may follow, in small
  integers times a power of two. So every product of the head is a sum of integers that float32
  holds, in whatever order it is added: logits are the same bits in every engine and batch, unless
  partial sums are rounded on the way.
- Signs of different tokens are not quite orthogonal: that is the noise by which two models with
  signs of their own differ, also where they have the same table.
- Beyond that, the small model has another first token behind a share of all tokens, those with the
  lowest lots. The share is what `AgreeingPair.calibrate` finds for a wanted agreement.

Agreement is the share of the places in texts of the large model where both models, given the text
so far, draw the same token with the same random numbers.

Whether our engine can serve a model is tried with logits that depend on what came before. These do
not: make every `RoutedModel` of the random models first, and the `AgreeingPair` then. It writes
weights where they lie, which also leaves captured graphs valid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from token_chain import TokenChain

import glimprouter as gr

SAMPLING = {"temperature": 0.6, "top_p": 0.95}
_EMBEDDING = 2.0**16  # half a unit in the last place below it is 128
_ABOVE = 5.0  # nats of the first token above all ids without a place together
_ROWS = 8192  # of a table that are written at once
_POSITIONS = 512  # whose logits are computed at once
_BISECTIONS = 12
_DRAWS = 4  # at each place of a text


def _embed(model: Any, seed: int) -> None:
    weight = model.get_input_embeddings().weight
    generator = torch.Generator(weight.device).manual_seed(seed)
    for rows in weight.split(_ROWS):
        signs = torch.randint(
            2, rows.shape, generator=generator, device=rows.device, dtype=torch.int8
        )
        rows.copy_((2 * signs - 1) * _EMBEDDING)


def _write_head(model: Any, chain: TokenChain, mistaken: float) -> None:
    """Head rows by which each token's successors follow it.

    Args:
        model: With signs for embeddings.
        chain: The table.
        mistaken: Share of the tokens with another first successor, in [0, 1].
    """
    embedding, head = (
        module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    width = embedding.shape[1]
    top = math.log(chain.vocabulary) + _ABOVE  # logit of the first successor
    quantum = 2.0 ** math.floor(math.log2(top / width / 32))  # 32 to 64 of them
    first = round(top / width / quantum)
    second = first - (chain.margins / width / quantum).round()
    wrong = chain.lots < mistaken
    strengths = (first * ~wrong, second, first * wrong)
    head.zero_()
    for ids in (chain.members.flatten(), chain.openings):
        for strength, following in zip(strengths, chain.following, strict=True):
            for some in ids.split(_ROWS):  # no two of them have the same successor
                factors = (strength[some] * quantum / _EMBEDDING).to(head.device, head.dtype)
                head[following[some].to(head.device)] += (
                    factors[:, None] * embedding[some.to(head.device)]
                )


class AgreeingPair:
    """Writes embeddings and heads of both models.

    Attributes:
        chain: The table that both follow.
        mistaken: Share of the tokens where the small model has another first successor.
    """

    @torch.inference_mode()
    def __init__(self, small: Any, large: Any, chain: TokenChain) -> None:
        """A pair that agrees as often as its noise lets it.

        Args:
            small: In bfloat16, with an embedding table and a head of its own.
            large: Likewise.
            chain: The table, as wide as the vocabulary of both.

        Raises:
            ValueError: Models that cannot follow it exactly.
        """
        self.chain = chain
        self.mistaken = 0.0
        self._small, self._large = small, large
        for seed, model in enumerate((small, large)):
            embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
            if embedding.dtype != torch.bfloat16 or embedding.data_ptr() == head.weight.data_ptr():
                raise ValueError("both models must be bfloat16, with a head that is not tied")
            if len(embedding) != chain.vocabulary:
                raise ValueError(
                    f"{len(embedding)} embeddings, {chain.vocabulary} ids in the table"
                )
            _embed(model, seed)
            _write_head(model, chain, 0.0)
            self._check_exact(model)

    @torch.inference_mode()
    def set_mistaken(self, share: float) -> None:
        """Writes the head of the small model anew."""
        self.mistaken = share
        _write_head(self._small, self.chain, share)

    def agreement(self, before: Sequence[int], seed: int) -> float:
        """Share of the places of texts where both models draw the same.

        Args:
            before: Last token of the text before each place: no other matters.
            seed: Of the random numbers, which both models draw with.
        """
        own, others = (self._drawn(model, before, seed) for model in (self._small, self._large))
        return float((own == others).float().mean())

    def calibrate(self, wanted: float, before: Sequence[int], seed: int) -> float:
        """Finds the share of mistaken tokens that gives an agreement, and writes it.

        Args:
            wanted: Agreement in (0, 1).
            before: As in `agreement`, of texts of the large model.
            seed: Likewise.

        Returns:
            The agreement that was reached, with other random numbers than it was found with.

        Raises:
            ValueError: The noise alone is more than the wanted agreement allows.
        """
        others = self._drawn(self._large, before, seed)
        tried: dict[float, float] = {}

        def reached(share: float) -> float:
            self.set_mistaken(share)
            tried[share] = float((self._drawn(self._small, before, seed) == others).float().mean())
            return tried[share]

        if reached(0.0) < wanted:
            raise ValueError(
                f"the models agree on {tried[0.0]:.3f} of the tokens at most, {wanted} is wanted"
            )
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if reached(middle) >= wanted else (low, middle)
        self.set_mistaken(min(tried, key=lambda share: abs(tried[share] - wanted)))
        return self.agreement(before, seed + 1)

    @torch.inference_mode()
    def _drawn(self, model: Any, before: Sequence[int], seed: int) -> torch.Tensor:
        """What a model draws behind each token, ``_DRAWS`` times."""
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        found = []
        for start in range(0, len(before), _POSITIONS):
            last = torch.tensor(before[start : start + _POSITIONS], device=model.device)
            # What the layers and the last norm make of it: checked when the pair was made.
            logits = head(embedding(last) / _EMBEDDING)
            positions = range(start, start + len(last))
            found += [
                gr.sample(logits, **SAMPLING, seed=seed, substream=draw, position=positions)
                for draw in range(_DRAWS)
            ]
        return torch.cat(found)

    def _check_exact(self, model: Any) -> None:
        """Raises ValueError where layers move what the last norm gives."""
        ids = self.chain.members[:: len(self.chain.members) // 32, 0][None].to(model.device)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        if not torch.equal(hidden, model.get_input_embeddings()(ids) / _EMBEDDING):
            raise ValueError(
                "what the layers add is more than the embeddings' rounding takes: the pair would"
                " not follow its table exactly"
            )
