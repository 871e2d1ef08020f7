"""One sequence that a :class:`glimprouter.hf.GlimpseObserver` watches: its steps and glimpses."""

from __future__ import annotations

from dataclasses import dataclass, field

from glimprouter.boundary import StepBoundary


@dataclass(slots=True)
class ObservedStep:
    """A step in the making.

    Attributes:
        start: Index of its first generated token, white space included.
        end: Index behind its last one; grows.
        glimpse: Index of its first real token, -1 before it.
        entropy: Entropy of that token's distribution in nats.
        end_reason: ``"none"`` while it is written.
    """

    start: int
    end: int
    glimpse: int = -1
    entropy: float = 0.0
    end_reason: str = "none"


@dataclass(slots=True)
class ObservedRow:
    """Follows the tokens of one row by the rules of the router, without its limits.

    Attributes:
        boundary: Where steps end.
        tokens: Generated ids.
        entropies: One a token, where all are computed; else empty.
        steps: Finished ones, and the one that is written.
        answer_start: Index of the first token behind the thinking, -1 before it.
        done: Whether the sequence has ended.
    """

    boundary: StepBoundary
    tokens: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    steps: list[ObservedStep] = field(default_factory=list)
    answer_start: int = -1
    done: bool = False
    end_reason: str = "none"
    _state: int = 0
    _step: ObservedStep = field(default_factory=lambda: ObservedStep(0, 0))
    _entropy: float = 0.0  # of the distribution that the next token comes from

    @property
    def at_step_start(self) -> bool:
        """Whether the next token may be a step's first."""
        return not self.done and self.answer_start < 0 and self._step.glimpse < 0

    def observe(self, entropy: float, *, keep: bool) -> None:
        """The entropy of the distribution that the next token will come from."""
        self._entropy = entropy
        if keep:
            self.entropies.append(entropy)

    def commit(self, token: int) -> None:
        """The token that was chosen; what follows the end of the sequence is padding."""
        if self.done:
            return
        index = len(self.tokens)
        self.tokens.append(token)
        ended = token in self.boundary.eos_ids
        if self.answer_start >= 0:
            self._finish("eos" if ended else "none")
            return
        before = self._state
        self._state, hit = self.boundary.effect(before, token)
        closes = self.boundary.ends_thinking(token, before)
        step = self._step
        step.end = index + 1
        leads = ended or closes or self.boundary.precedes_step(token, before)
        if self.at_step_start and not leads:
            step.glimpse, step.entropy = index, self._entropy
            self.steps.append(step)
        if ended or closes or hit:
            step.end_reason = "eos" if ended else "think_end" if closes else "delimiter"
            self._step = ObservedStep(index + 1, index + 1)
        if closes and not ended:
            self.answer_start = index + 1
        self._finish("eos" if ended else "none")

    def _finish(self, reason: str) -> None:
        if reason != "none":
            self.done, self.end_reason = True, reason
