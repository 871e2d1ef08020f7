"""What a policy decides about steps that were glimpsed, told to the router."""

from __future__ import annotations

from collections.abc import Sequence

from glimprouter.config import ModelName
from glimprouter.hf.run.said import Said, read_entries
from glimprouter.policies import Glimpse, Policy
from glimprouter.policies.base import reads_steps
from glimprouter.router import OutputField, Phase, StepRouter

_STATISTICS = {
    "max_prob": OutputField.MAX_PROB,
    "margin": OutputField.MARGIN,
    "varentropy": OutputField.VARENTROPY,
}


def is_undecided(said: Said) -> bool:
    """Whether a glimpse waits for a decision."""
    return bool(said.entries) and said.entries[-1][1].phase == Phase.AWAIT_DECISION


class Decisions:
    """Asks a policy and continues the rows.

    Attributes:
        glimpsed: Outputs for the small model's steps, with the statistics that the policy reads.
    """

    def __init__(self, router: StepRouter, policy: Policy, max_sequences: int) -> None:
        """Nothing is decided yet.

        Args:
            router: Whose rows have ``route="manual"``.
            policy: The rule.
            max_sequences: In flight.
        """
        self._withholds = reads_steps(policy)
        fields = OutputField.LOGPROB if self._withholds else OutputField.NONE
        self.glimpsed = router.outputs(max_sequences, policy.signals | fields)
        self._router = router
        self._policy = policy
        self._decided = router.outputs(max_sequences, fields)
        self._unread: list[Said] = []  # that the last call to the router was about

    def make(self, said: Sequence[Said]) -> None:
        """Decides for those whose glimpse waits for it; adds what came of that to their entries.

        Args:
            said: Of a pass, in the order of its outputs, of which nothing has been told.

        Raises:
            Exception: Whatever the policy raises; nothing is decided then.
            ValueError: The policy named no model.
        """
        self._read()
        waiting: dict[ModelName, list[Said]] = {"small": [], "large": []}
        for place, own in enumerate(said):
            if not is_undecided(own):
                continue
            step = self._router.state(own.record.row)["step_index"]
            writer = self._ask(self._glimpse(own, place, step))
            if writer not in waiting:
                raise ValueError(
                    f'{self._policy.name}.before must return "small" or "large", got {writer!r}'
                )
            waiting[writer].append(own)
        for writer, chosen in waiting.items():
            if not chosen:
                continue
            self._unread = chosen
            self._router.decide(writer, [own.record.row for own in chosen], self._decided)
            self._read()

    def _read(self) -> None:
        """What came of the last decision, also where an interrupt came behind it."""
        for own, entry in zip(
            self._unread, read_entries(self._decided, len(self._unread)), strict=True
        ):
            state = self._router.state(own.record.row)
            if not is_undecided(own) or state["phase"] == Phase.AWAIT_DECISION:
                continue
            if self._withholds and entry[1].token >= 0:
                own.record.running.withhold(len(own.record.generated))
            own.record.drafts.room = entry[1].room
            own.entries.append(entry)
        self._unread = []

    def _ask(self, glimpse: Glimpse) -> ModelName:
        try:
            return self._policy.before(glimpse)
        except StopIteration as error:  # which would end the run's own iteration without a word
            raise RuntimeError(f"{self._policy.name}.before raised StopIteration") from error

    def _glimpse(self, said: Said, place: int, step: int) -> Glimpse:
        record, signals = said.record, said.entries[-1][1]
        steps, out = record.trace.steps, self.glimpsed
        previous = steps[-1].model if steps else None
        statistics = {
            name: float(getattr(out, name)[place])
            for name, field in _STATISTICS.items()
            if field in self._policy.signals
        }
        return Glimpse(
            record.trace.seed,
            record.trace.substream,
            step,
            len(record.generated),
            previous,  # type: ignore[arg-type]
            signals.entropy,
            **statistics,
        )
