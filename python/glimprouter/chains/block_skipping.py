"""FTP (arXiv 2412.11494) as a schedule: per block, a router says which tokens skip it.

In front of each block a rule reads a few scalars of each token; a token that may skip the block
passes it unchanged. In the source the router is a small trained network, the share of each block
comes from a genetic search, and both are tuned with three losses. Here the rule is an argument
(:mod:`glimprouter.chains.skip_rules`), and an example is trained by logistic regression on what
blocks do to recorded tokens (:mod:`glimprouter.chains.skip_router`): the schedule is the source's,
the training is not.

A skipped token leaves out the block's attention and MLP, as in the source. Its keys and values are
computed nevertheless, of the state in which it passes by, and later tokens read them: with a cache
each block has one entry a token, and a token that goes through never finds that others are missing.
What the source does with them could not be checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glimprouter.chains.block_scorer import BlockScorer, TokenFeatures, ranks
from glimprouter.chains.plain_cache import plain_cache
from glimprouter.chains.skipped_tokens import forward_some, past_length
from glimprouter.glimpse import glimpse
from glimprouter.policies.checks import check_probability

if TYPE_CHECKING:
    import torch


class SkipCounts(NamedTuple):
    """Tokens by block.

    Attributes:
        tokens: That came to each block, int64 ``[blocks]``.
        skipped: Those that skipped it, ``[blocks]``.
    """

    tokens: npt.NDArray[np.int64]
    skipped: npt.NDArray[np.int64]

    @property
    def share(self) -> float:
        """Of tokens times blocks that were skipped; 0 before any came."""
        return float(self.skipped.sum() / max(1, self.tokens.sum()))


class BlockSkipping:
    """Lets tokens skip blocks of a model, within a ``with``, under ``model(...)`` or ``generate``.

    One sequence at a time, without padding. The model's blocks are called through this object
    meanwhile, and as before afterwards; nothing of the model is copied or changed. Not for several
    threads, nor for compiled models.

    What is saved is real: tokens that go through are gathered, and a skipped token costs the
    projections to queries, keys and values only (the queries in vain). But rules run on the CPU and
    wait for a device, a layer that some skip runs in two parts, and in a pass of one token only
    whole blocks can be saved. Measure before you count on time.
    """

    def __init__(
        self,
        model: Any,
        scorer: BlockScorer,
        *,
        shares: float | Sequence[float] = 0.0,
        threshold: float = 0.5,
    ) -> None:
        """The schedule.

        Args:
            model: A causal language model of transformers with attention "eager" or "sdpa", whose
                blocks keep keys and values only.
            scorer: The rule.
            shares: Of tokens that each block should skip, in [0, 1]: one number, or one a block.
                Rules are told; it is up to them.
            threshold: A token skips a block where its chance is above this, in [0, 1].

        Raises:
            TypeError: No rule, or a number of the wrong type.
            ValueError: A value out of range, or a model of another form.
        """
        if not isinstance(scorer, BlockScorer):
            raise TypeError(f"scorer must be a BlockScorer, got {type(scorer).__name__}")
        check_probability("threshold", threshold)
        self.model = model
        self.scorer = scorer
        self.threshold = threshold
        self._blocks = _blocks_of(model, scorer.reads_attention)
        count = len(self._blocks)
        self.shares = [shares] * count if isinstance(shares, int | float) else list(shares)
        if len(self.shares) != count:
            raise ValueError(f"shares has {len(self.shares)} entries for {count} blocks")
        for share in self.shares:
            check_probability("shares", share)
        self._tokens = np.zeros(count, dtype=np.int64)
        self._skipped = np.zeros(count, dtype=np.int64)
        self._in_pass = 0  # tokens
        self._received: npt.NDArray[np.float64] | None = None
        self._present: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._entropy: float | None = None
        self._undo: list[Any] = []

    @property
    def counts(self) -> SkipCounts:
        """Of all passes so far."""
        return SkipCounts(self._tokens.copy(), self._skipped.copy())

    def __enter__(self) -> BlockSkipping:
        """Begins to skip.

        Raises:
            RuntimeError: Tokens skip blocks of this model already.
        """
        if any(isinstance(vars(block).get("forward"), _Block) for block in self._blocks):
            raise RuntimeError("tokens skip blocks of this model already; leave that with first")
        for index, block in enumerate(self._blocks):
            self._undo.append(_set_forward(block, _Block(self, index, block.forward)))
            if self.scorer.reads_attention:
                hook = _attention_of(block).register_forward_hook(self._see_weights)
                self._undo.append(hook.remove)
        if self.scorer.reads_entropy:
            self._undo.append(self.model.register_forward_hook(self._see_logits).remove)
        self._entropy = None
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the model as it was."""
        while self._undo:
            self._undo.pop()()

    def _through(self, index: int, tokens: int, past: int) -> npt.NDArray[np.bool_]:
        """Which tokens of a pass go through a block, ``[T]``."""
        if index == 0:
            self._received = None
            if past == 0:
                self._entropy = None  # a new sequence
        attention = rank = None
        if self.scorer.reads_attention:
            attention = rank = np.zeros(tokens)
            if self._received is not None:
                attention, rank = self._received, ranks(self._received)
        position = np.arange(past, past + tokens, dtype=np.int64)
        features = TokenFeatures(
            index, position, attention, rank, self.shares[index], self._entropy
        )
        chances = np.asarray(self.scorer.chances(features), dtype=np.float64)
        if chances.shape != (tokens,) or np.isnan(chances).any():
            raise ValueError(
                f"{type(self.scorer).__name__} must give a chance for each of {tokens} tokens, got"
                f" {list(chances.shape)}{' with NaN' if np.isnan(chances).any() else ''}"
            )
        through = chances <= self.threshold
        self._tokens[index] += tokens
        self._skipped[index] += tokens - int(through.sum())
        self._present = np.nonzero(through)[0]
        return through

    def _see_weights(self, _: Any, __: Any, output: Any) -> None:
        """Keeps what the tokens of a pass received, of the weights ``[1, heads, K, past + T]``."""
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None:
            raise RuntimeError("the model's attention gives no weights")
        tokens = self._in_pass
        own = weights[0, :, :, -tokens:].detach().double().mean(0).sum(0).cpu().numpy()
        seen = len(self._present) - np.searchsorted(self._present, np.arange(tokens))
        self._received = np.where(seen > 0, own / np.maximum(seen, 1), 0.0)

    def _see_logits(self, _: Any, __: Any, output: Any) -> None:
        entropy = float(glimpse(output.logits[:, -1].detach().float().contiguous()).entropy[0])
        self._entropy = entropy if np.isfinite(entropy) else None

    def _run(self, block: _Block, hidden: torch.Tensor, options: dict[str, Any]) -> Any:
        import torch

        if hidden.shape[0] != 1:
            raise ValueError(f"one sequence at a time, got a batch of {hidden.shape[0]}")
        self._in_pass = hidden.shape[1]
        past = past_length(options.get("past_key_values"), block.index)
        through = self._through(block.index, self._in_pass, past)
        if through.all():
            return block.forward(hidden, **options)
        some, rest = (
            torch.from_numpy(np.nonzero(part)[0]).to(hidden.device) for part in (through, ~through)
        )
        return forward_some(block.forward, hidden, some, rest, past, options)


class _Block:
    """Stands in for the ``forward`` of one block."""

    def __init__(self, skipping: BlockSkipping, index: int, forward: Any) -> None:
        self.skipping = skipping
        self.index = index
        self.forward = forward

    def __call__(self, hidden_states: torch.Tensor, *others: Any, **options: Any) -> Any:
        if others:
            raise TypeError("the model hands its blocks more than one argument without a name")
        return self.skipping._run(self, hidden_states, options)


def _set_forward(block: Any, forward: _Block) -> Any:
    """Sets the ``forward`` of an instance; what undoes that."""
    before = vars(block).get("forward")
    block.forward = forward

    def undo() -> None:
        if before is None:
            del block.forward
        else:
            block.forward = before

    return undo


def _attention_of(block: Any) -> Any:
    """The part of a block that attends."""
    found = [part for part in block.modules() if hasattr(part, "layer_idx") and part is not block]
    if len(found) != 1:
        raise ValueError(f"a {type(block).__name__} has {len(found)} parts that attend, not one")
    return found[0]


def _blocks_of(model: Any, reads_attention: bool) -> list[Any]:
    """The blocks of a decoder whose form is known.

    Raises:
        ValueError: Another form.
    """
    plain_cache(model)
    name = type(model).__name__
    blocks = getattr(model.get_decoder(), "layers", None)
    if blocks is None or len(blocks) == 0:
        raise ValueError(f"{name} has no list of layers; give a decoder like that of Llama")
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "num_kv_shared_layers", 0):
        raise ValueError(f"layers of {name} share keys and values, so none can be skipped alone")
    known = ("eager",) if reads_attention else ("eager", "sdpa")
    if (attention := model.config._attn_implementation) not in known:
        raise ValueError(
            f"{name} attends by {attention!r}; this rule needs {' or '.join(map(repr, known))}:"
            f" call model.set_attn_implementation({known[0]!r})"
        )
    if reads_attention:
        for block in blocks:
            _attention_of(block)
    return list(blocks)
