"""The gate's rule, without vLLM: one row of logits in, one token and what it says out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from glimprouter.boundary import StepBoundary
from glimprouter.glimpse import Status, glimpse, sample
from glimprouter.vllm.protocol import (
    BoundarySpec,
    GateOptions,
    Written,
    fingerprint,
    greeting,
    value_of,
)

_NO_MARKERS = BoundarySpec(None, None, None, ())
_CONTENT = 1  # the lowest bit of a state: something other than white space is in the step


class GateRow:
    """One request: follows its tokens by the rules of the router, within one writer's turn.

    Attributes:
        options: Of the request.
        handoff_value: What the hand-off token says where nothing is to be written; else None.
    """

    def __init__(self, options: GateOptions, boundary: StepBoundary, handoff_value: float | None):
        """Nothing is written.

        Args:
            options: Of the request.
            boundary: Of the engine's tokenizer.
            handoff_value: See the class.
        """
        self.options = options
        self.handoff_value = handoff_value
        self._boundary = boundary
        self._eos = frozenset(boundary.eos_ids)
        self._drawn: list[int] = []  # what this gate left of each row, by place
        self._begin()

    def _begin(self) -> None:
        self._followed = 0
        self._state = self.options.automaton
        self._step_tokens = self.options.step_tokens
        self._begun = self.options.begun
        self._glimpses = 0  # decisions about the followed tokens
        self._over = False

    @property
    def vocabulary(self) -> int:
        """Ids of the tokenizer."""
        return self._boundary.vocab_size

    @property
    def length(self) -> int:
        """Tokens that the row stands behind."""
        return self._followed

    @property
    def glimpsing(self) -> bool:
        """Whether the next token may be a step's first, about which there is a decision."""
        return self.options.decides and not self.options.answering and not self._begun

    def follow(self, written: Sequence[int]) -> None:
        """Moves to behind the tokens that the engine has.

        Args:
            written: Of the request. A negative id is one that the engine has not copied to the host
                yet: this gate knows what it left. An engine may drop tokens and compute a row
                again: what it has counts.

        Raises:
            RuntimeError: A token that neither the engine nor the gate knows.
        """
        if len(written) < self._followed:
            self._begin()
        for place in range(self._followed, len(written)):
            token = written[place]
            if token < 0:
                if place >= len(self._drawn):
                    raise RuntimeError(f"token {place} of the request is not known on this rank")
                token = self._drawn[place]
            self._commit(token)
        self._followed = len(written)

    def _commit(self, token: int) -> None:
        self._over = self._ends(token)
        if self.options.answering:
            return
        before = self._state
        self._glimpses += self.glimpsing and not self._leads(token)
        self._state, hit = self._boundary.effect(before, token)
        self._step_tokens += 1
        if hit or self._step_tokens >= self.options.max_step_tokens:
            self._state &= ~_CONTENT
            self._step_tokens, self._begun = 0, False
        elif not self._boundary.precedes_step(token, before):
            self._begun = True

    def judge(self, token: int, entropy: float) -> Written:
        """What comes of a token that was drawn.

        Args:
            token: Drawn from the row's logits.
            entropy: Of these, where the row is ``glimpsing``.
        """
        if self._over:
            return Written(None, ended=True)
        glimpsed = self.glimpsing and not self._leads(token)
        if glimpsed and self._is_hard(entropy):
            return Written(None, entropy, ended=True)
        if token == self.options.handoff or (self._ends(token) and not glimpsed):
            return Written(token, ended=True)
        # One that was glimpsed and ends the thinking brings its entropy: the next row ends.
        return Written(token, entropy if glimpsed else None)

    def remember(self, token: int) -> None:
        """The token that was left of the row behind the followed ones."""
        del self._drawn[self._followed :]
        missing = self._followed - len(self._drawn)  # those before it came from the engine
        self._drawn += [-1] * missing
        self._drawn.append(token)

    def _leads(self, token: int) -> bool:
        return self._boundary.precedes_step(token, self._state)

    def _is_hard(self, entropy: float) -> bool:
        if self._glimpses + 1 == self.options.hard_at:
            return True
        value, threshold = np.float32(entropy), np.float32(self.options.threshold)
        return bool(value >= threshold if self.options.at_least else value > threshold)

    def _ends(self, token: int) -> bool:
        if token in self._eos:
            return True
        if self.options.answering:
            return False
        if self._boundary.ends_thinking(token, self._state):
            return True
        if not self.options.one_step:
            return False
        _, hit = self._boundary.effect(self._state, token)
        return hit or self._step_tokens + 1 >= self.options.max_step_tokens


def leave_one_token(logits: torch.Tensor, rows: Sequence[tuple[int, GateRow]]) -> None:
    """Draws a token for each row, decides, and masks all others.

    Logits stay where they are; ids, entropies and statuses, a few bytes a row, come to the host.

    Args:
        logits: ``[B, V]`` float32; the rows are overwritten.
        rows: Index of a row in the logits, and its request.
    """
    if not rows:
        return
    full = len(rows) == len(logits)
    if full:
        rows, own = sorted(rows, key=lambda entry: entry[0]), logits
    else:
        places = torch.tensor([place for place, _ in rows], device=logits.device)
        own = logits.index_select(0, places)
    requests = [row for _, row in rows]
    own = own[:, : requests[0].vocabulary]  # a model may have more columns than tokens
    tokens = _draw(own, requests)
    said = _say(own, requests, tokens)
    last = logits.shape[1] - 1
    left = [min(token, last) for token, _ in said]  # a stranger's hand-off token may lie outside
    for row, token in zip(requests, left, strict=True):
        row.remember(token)
    ids = torch.tensor(left, device=logits.device)
    values = torch.tensor([value for _, value in said], dtype=logits.dtype, device=logits.device)
    if full:  # without places: half of the calls, each of which costs more than its work
        logits.fill_(-torch.inf).scatter_(1, ids[:, None], values[:, None])
    else:
        logits.index_fill_(0, places, -torch.inf)
        logits[places, ids] = values


def _draw(logits: torch.Tensor, rows: Sequence[GateRow]) -> list[int]:
    """A token for each row; -1 where the logits are invalid."""
    drawn = [-1] * len(rows)
    for options, places in _groups(rows, _filters).items():
        temperature, top_p, top_k, min_p, seed, purpose = options
        chosen = [rows[place] for place in places]
        found: Any = sample(
            _selected(logits, places),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
            substream=np.array([row.options.substream for row in chosen], np.uint64),
            position=np.array([row.options.position + row.length for row in chosen], np.uint64),
            purpose=purpose,
        )
        for place, token in zip(places, found.tolist(), strict=True):
            drawn[place] = token
    return drawn


def _say(
    logits: torch.Tensor, rows: Sequence[GateRow], tokens: Sequence[int]
) -> list[tuple[int, float]]:
    """The token that is left of each row, and its logit."""
    looked = [place for place, row in enumerate(rows) if row.glimpsing or tokens[place] < 0]
    entropies, statuses = _look(logits, rows, looked)
    said = []
    for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        handoff = row.options.handoff
        if row.handoff_value is not None:
            said.append((handoff, row.handoff_value))
            continue
        status = statuses.get(place, Status.OK)
        if status != Status.OK:
            written = Written(None, status=status, ended=True)
        else:
            written = row.judge(token, entropies.get(place, 0.0))
        left = handoff if written.ended or written.token is None else written.token
        said.append((left, value_of(written)))
    return said


def _look(
    logits: torch.Tensor, rows: Sequence[GateRow], looked: Sequence[int]
) -> tuple[dict[int, float], dict[int, Status]]:
    """Entropy and status of some rows."""
    entropies: dict[int, float] = {}
    statuses: dict[int, Status] = {}
    chosen = [rows[place] for place in looked]
    for top_k, places in _groups(chosen, lambda row: row.options.entropy_top_k).items():
        wanted = [looked[place] for place in places]
        seen = glimpse(_selected(logits, wanted), entropy_top_k=top_k)
        pairs = zip(wanted, seen.entropy.tolist(), seen.status.tolist(), strict=True)
        for place, entropy, status in pairs:
            entropies[place], statuses[place] = entropy, Status(status)
    return entropies, statuses


def _filters(row: GateRow) -> tuple[float, float, int, float, int, int]:
    own = row.options
    return own.temperature, own.top_p, own.top_k, own.min_p, own.seed, own.purpose


def _groups(rows: Sequence[GateRow], key: Any) -> dict[Any, list[int]]:
    """Places of rows with the same options: one call each."""
    groups: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(key(row), []).append(place)
    return groups


def _selected(logits: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    if len(places) == len(logits):
        return logits
    return logits.index_select(0, torch.tensor(places, device=logits.device))


class Boundaries:
    """The boundaries of one tokenizer that clients have asked for, and whether they are theirs."""

    _MOST = 8  # clients of one deployment ask for one; a stray one must not fill the memory

    def __init__(self, tokenizer: Any) -> None:
        """None are made."""
        self._tokenizer = tokenizer
        self._made: dict[Any, tuple[StepBoundary, str]] = {}

    def row(self, options: GateOptions) -> GateRow:
        """A request, at its beginning; one of another tokenizer is told so, and ends.

        Nothing is raised: an exception here would be the end of the engine, and of all requests.
        """
        try:
            boundary, own = self._of(options.spec)
        except ValueError:  # a marker or an end that this tokenizer does not have
            boundary, _ = self._of(_NO_MARKERS)
            return GateRow(options, boundary, greeting(False))
        strange = options.automaton >= boundary.num_states
        hello = options.hello
        value = greeting(hello == own) if hello is not None or strange else None
        return GateRow(options, boundary, value)

    def _of(self, spec: BoundarySpec) -> tuple[StepBoundary, str]:
        made = self._made.pop(spec, None)
        if made is None:
            boundary = spec.boundary(self._tokenizer)
            made = boundary, fingerprint(boundary)
        self._made[spec] = made  # the last one used comes last
        while len(self._made) > self._MOST:
            del self._made[next(iter(self._made))]
        return made
