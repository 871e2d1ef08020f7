"""The router of a run, told what engines have written: it says whose turn it is, and what ended."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glimprouter.boundary import StepBoundary
from glimprouter.config import RouterConfig
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.run.said import read_entries
from glimprouter.hf.sequence.signals import Signals
from glimprouter.policies import Policy
from glimprouter.router import OutputField, Phase, StepRouter
from glimprouter.vllm.protocol import GateOptions, Written
from glimprouter.vllm.rules import coin_of, options_of


class GateDisagrees(RuntimeError):
    """A gate glimpsed where no step starts, or did not where one does."""


class Mirror:
    """A :class:`glimprouter.StepRouter` that is given tokens instead of logits.

    All rules of steps, budgets and repetitions are the router's own: a row of logits that allows
    one token makes it take that token. Decisions are those of the gate.
    """

    def __init__(
        self,
        boundaries: Sequence[StepBoundary],
        config: RouterConfig,
        max_sequences: int,
        policy: Policy | None = None,
    ) -> None:
        """No sequences.

        Args:
            boundaries: Of the small and the large model; the same one where they agree.
            config: Options of the run.
            max_sequences: In flight.
            policy: That gates follow; None for the config's threshold.
        """
        self.config = config
        self._policy = policy
        self._coin = coin_of(policy)
        self._router = StepRouter(
            boundaries[0], config, large_boundary=boundaries[1], max_sequences=max_sequences
        )
        self._configs: dict[int, RouterConfig] = {}
        self._logits: dict[str, npt.NDArray[np.float16]] = {
            name: np.full((1, boundary.vocab_size), -np.inf, np.float16)
            for name, boundary in zip(MODELS, boundaries, strict=True)
        }
        self._word = _word(boundaries[0])
        self._said = self._router.outputs(1, OutputField.NONE)

    def open(self, options: Mapping[str, Any]) -> int:
        """Starts a sequence; the options are those of ``StepRouter.open``."""
        if self._policy is not None and options.get("route") == "manual":  # to the router alone
            options = {**options, "route": "auto", **options_of(self._policy)}
        row = self._router.open(**_deciding(self.config, options))
        changes = {k: v for k, v in options.items() if k not in ("seed", "substream", "start")}
        self._configs[row] = self.config.replace(**changes)
        return row

    def load(self, saved: bytes, options: Mapping[str, Any]) -> int:
        """Goes on with a sequence that was saved; the options are fields of the config."""
        row = self._router.load(saved)
        self._configs[row] = self.config.replace(**options)
        return row

    def save(self, row: int) -> bytes:
        """A sequence."""
        return self._router.save(row)

    def options(self, row: int) -> dict[str, Any]:
        """The sequence's config, as JSON holds it."""
        return dataclasses.asdict(self._configs[row])

    def close(self, row: int) -> None:
        """Frees a row."""
        self._router.close(row)
        del self._configs[row]

    def waits_for(self, row: int) -> str:
        """Name of the model whose turn it is."""
        phase = self._router.phase(row)
        if phase == Phase.ANSWER:
            return self._configs[row].answer_model
        return "large" if phase == Phase.LARGE_STEP else "small"

    def answers(self, row: int) -> bool:
        """Whether the answer is being written."""
        return self._router.phase(row) == Phase.ANSWER

    def room(self, row: int) -> int:
        """Tokens that the model may write, at most."""
        return int(self._router.state(row)["room"])

    def ask(self, row: int, common: GateOptions) -> GateOptions:
        """What the gate of the model whose turn it is must know.

        Args:
            row: Of the sequence.
            common: With boundary and hand-off token.
        """
        state, config = self._router.state(row), self._configs[row]
        phase, step = Phase(state["phase"]), int(state["step_index"])
        routed = config.route == "auto" and phase != Phase.ANSWER
        model = self.waits_for(row)
        small = model == "small"
        given = step + 1 < config.first_steps_large  # the next step is the large model's
        return dataclasses.replace(
            common,
            answering=phase == Phase.ANSWER,
            automaton=int(state["automaton"]),
            step_tokens=int(state["step_tokens"]),
            begun=phase != Phase.GLIMPSE,
            decides=routed and small,
            one_step=routed and small == given,
            threshold=math.inf if self._coin else float(config.threshold),
            hard_at=self._next_hard(state) if routed and small else None,
            at_least=config.comparison == ">=",
            entropy_top_k=config.entropy_top_k,
            max_step_tokens=config.max_step_tokens,
            temperature=float(config.temperature),
            top_p=float(config.top_p),
            top_k=config.top_k,
            min_p=float(config.min_p),
            seed=int(state["seed"]),
            substream=int(state["substream"]),
            position=int(state["position"]),
            purpose=MODELS.index(model),
        )

    def _next_hard(self, state: Mapping[str, Any]) -> int | None:
        """How many glimpses from here a coin falls for the large model; None where it does not."""
        if self._coin is None:
            return None
        key = int(state["seed"]), int(state["substream"])
        first = int(state["step_index"]) + (Phase(state["phase"]) != Phase.GLIMPSE)
        steps = range(first, first + int(state["room"]))  # a step has a token at least
        found = next((step for step in steps if self._coin(*key, step)), None)
        return None if found is None else found - first + 1

    def take(self, row: int, model: str, said: Written, handoff: int) -> list[Signals]:
        """Moves a sequence on by what a gate said; what the router says to it.

        Args:
            row: Of the sequence.
            model: Whose gate.
            said: With a token, or with the entropy of a hard step.
            handoff: The hand-off token: the entropy of that one cannot be told.

        Raises:
            GateDisagrees: Gate and router are at different places.
        """
        hard = said.token is None
        if hard and self._router.phase(row) != Phase.GLIMPSE:
            raise GateDisagrees("a hard step was handed off where no step starts")
        token = self._word if said.token is None else said.token
        signals = [self._step(row, model, token)]
        awaits = signals[0].phase == Phase.AWAIT_DECISION
        if awaits != (said.entropy is not None) and said.token != handoff:
            place = "a step starts" if awaits else "no step starts"
            raise GateDisagrees(f"the gate says {said.entropy} of a glimpse where {place}")
        if awaits:
            self._router.decide("large" if hard else "small", [row], self._said)
            ((_, decided),) = read_entries(self._said, 1)
            decided.entropy = said.entropy  # type: ignore[assignment]
            signals.append(decided)
        return signals

    def _step(self, row: int, model: str, token: int) -> Signals:
        logits = self._logits[model]
        logits[0, token] = 0.0
        try:
            self._router.step(model, logits, [row], self._said)
        finally:
            logits[0, token] = -np.inf
        ((_, signals),) = read_entries(self._said, 1)
        return signals


def _deciding(config: RouterConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """The gate decides: the router is told."""
    route = options.get("route", config.route)
    return {**options, "route": "manual" if route == "auto" else route}


def _word(boundary: StepBoundary) -> int:
    """A token that no step's start waits behind, in whatever state: it stands for a candidate."""
    states = range(boundary.num_states)
    special = {*boundary.eos_ids, *boundary.think_end_ids}
    for token in range(boundary.vocab_size):
        if token not in special and not any(
            boundary.precedes_step(token, state) or boundary.ends_thinking(token, state)
            for state in states
        ):
            return token
    raise ValueError("the small model's tokenizer has no token that could begin a step")
