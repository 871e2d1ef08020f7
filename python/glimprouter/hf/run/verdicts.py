"""What a policy says of steps that were written: kept, or rewritten by the large model."""

from __future__ import annotations

from collections.abc import Sequence

from glimprouter.glimpse import Status
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.run.said import Said, read_entries
from glimprouter.hf.run.sequences import RunSequences
from glimprouter.hf.sequence.signals import Signals
from glimprouter.policies import Policy, Verdict, WrittenStep
from glimprouter.router import EndReason, OutputField, Phase


class Verdicts:
    """Asks a policy about each step that has ended, before its record knows of the end.

    Each question is asked once unless the policy raises; what it rejects is dropped from router,
    record and engine by calls that an interrupt may come between: the next call goes on there.
    """

    def __init__(self, sequences: RunSequences, policy: Policy) -> None:
        """Nothing is judged yet.

        Args:
            sequences: Of the run.
            policy: The rule.
        """
        self._sequences = sequences
        self._policy = policy
        self._decided = sequences.router.outputs(1, OutputField.NONE)

    def make(self, said: Sequence[Said]) -> None:
        """Judges the steps that ended in a pass, of which nothing has been told.

        Args:
            said: Of the pass.

        Raises:
            Exception: Whatever the policy raises; it is asked again then.
            ValueError: The verdict is none.
        """
        for own in said:
            if own.judged < len(own.entries):
                self._judge(own)
            if own.rejected and not own.rewritten:
                self._rewrite(own)

    def _judge(self, own: Said) -> None:
        record = own.record
        if record.trace.policy is None or not any(s.end_reason for _, s in own.entries):
            own.judged = len(own.entries)
            return
        start = record.running.start
        ended = [step.text for step in record.trace.steps]
        written: list[Signals] = []  # that the record has not been told of, and behind ``start``
        told = len(record.generated)
        for place, (status, signals) in enumerate(own.entries):
            if status != Status.OK or record.answering:
                break
            if signals.token < 0:
                continue
            written.append(signals)
            if not signals.end_reason:
                continue
            step = self._step(own, written, start, told, ended)
            if place >= own.judged:
                if self._ask(step) == "rewrite" and step.rewritable:
                    own.rejected = told + len(written) - record.running.decided
                own.judged = place + 1
            told += len(written)
            start, written = told, []
            ended.append(step.text)
        own.judged = len(own.entries)

    def _step(
        self, own: Said, written: Sequence[Signals], start: int, told: int, ended: list[str]
    ) -> WrittenStep:
        """The step that the last of these tokens ends."""
        record, running = own.record, own.record.running
        begun = start == running.start
        writer = MODELS.index(own.model)
        known = slice(start, told) if begun else slice(0, 0)
        entropies, logprobs = record.statistics.between(known.start, known.stop)
        ids = [*record.generated[known], *(signals.token for signals in written)]
        writers = [*record.writers[known], *[writer] * len(written)]
        glimpsed = [s.entropy for _, s in own.entries if s.route]
        entropy = running.entropy if begun else None
        writer_of_all = own.model
        if begun and not glimpsed and entropy is not None:
            writer_of_all = running.model  # of whose step the other wrote the rest
        return WrittenStep(
            record.trace.seed,
            record.trace.substream,
            len(ended),
            start,
            writer_of_all,  # type: ignore[arg-type]
            begun and running.withheld,
            glimpsed[0] if glimpsed else entropy,
            ids,
            [*entropies, *(signals.entropy for signals in written)],
            [*logprobs, *(signals.logprob for signals in written)],
            record.reader.decode(ids, writers, cut=len(ids) if written[-1].forced else None),
            EndReason(written[-1].end_reason).name.lower(),
            record.trace.prompt,
            tuple(ended),
        )

    def _ask(self, step: WrittenStep) -> Verdict:
        name = self._policy.name
        try:
            verdict = self._policy.after(step)
        except StopIteration as error:  # which would end the run's own iteration without a word
            raise RuntimeError(f"{name}.after raised StopIteration") from error
        if verdict not in ("keep", "rewrite"):
            raise ValueError(f'{name}.after must return "keep" or "rewrite", got {verdict!r}')
        return verdict

    def _rewrite(self, own: Said) -> None:
        """Drops the step that the small model was given; the large model writes it now."""
        record, router = own.record, self._sequences.router
        entropy = next((s.entropy for _, s in own.entries if s.route), record.running.entropy)
        kept = record.running.decided if record.running.withheld else len(record.generated)
        state = router.state(record.row)
        if state["position"] > kept:
            router.rewind(record.row, state["position"] - kept)
        if router.state(record.row)["phase"] == Phase.GLIMPSE:
            router.decide("large", [record.row], self._decided)
        record.drop_step(own.rejected)
        self._sequences.engine.rewind(record)
        ((status, signals),) = read_entries(self._decided, 1)
        assert entropy is not None  # it was glimpsed
        signals.entropy = entropy
        record.drafts.clear()
        record.drafts.room = signals.room
        own.entries[:], own.rewritten = [(status, signals)], True
