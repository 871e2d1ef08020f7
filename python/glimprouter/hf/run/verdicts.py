"""What a policy says of steps that were written: kept, or rewritten by the large model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from glimprouter.glimpse import Status
from glimprouter.hf.pair.asides import EncodedAside
from glimprouter.hf.pair.text import MODELS
from glimprouter.hf.run.asides import Asides, AskedStep
from glimprouter.hf.run.said import Said, read_entries
from glimprouter.hf.run.sequences import RunSequences
from glimprouter.hf.sequence.signals import Signals
from glimprouter.policies import Judgement, Policy, Verdict, WrittenStep
from glimprouter.policies.checks import check_number
from glimprouter.router import EndReason, OutputField, Phase


class Verdicts:
    """Asks a policy about each step that has ended, before its record knows of the end.

    Each question is asked once unless the policy raises; what it rejects is dropped from router,
    record and engine by calls that an interrupt may come between: the next call goes on there.
    """

    def __init__(
        self, sequences: RunSequences, policy: Policy, aside: EncodedAside | None = None
    ) -> None:
        """Nothing is judged yet.

        Args:
            sequences: Of the run.
            policy: The rule.
            aside: What the large model reads first; None for nothing.
        """
        self._sequences = sequences
        self._policy = policy
        self._asides = None if aside is None else Asides(sequences, aside)
        self._decided = sequences.router.outputs(1, OutputField.NONE)

    def make(self, said: Sequence[Said]) -> None:
        """Judges the steps that ended in a pass, of which nothing has been told.

        Args:
            said: Of the pass.

        Raises:
            Exception: Whatever the policy raises; it is asked again then.
            ValueError: The verdict is none.
        """
        left = [own for own in said if own.judged < len(own.entries) and not own.record.done]
        if self._asides is not None:
            self._asides.read([step for own in left for step in self._unread(own)])
        for own in left:
            if own.fault is None:
                self._judge(own)
        for own in said:
            if own.rejected and not own.rewritten:
                self._rewrite(own)

    def _unread(self, own: Said) -> list[AskedStep]:
        """The step that the large model has to read first, if there is one."""
        if own.reading is not None or own.fault is not None:
            return []
        return [
            AskedStep(own, [signals.token for signals in written], step.position)
            for place, step, written in self._ended(own)
            if place >= own.judged and step.rewritable
        ]

    def _judge(self, own: Said) -> None:
        for place, step, written in self._ended(own):
            if place >= own.judged:
                verdict, score = self._ask(step)
                if step.rewritable:
                    own.record.running.score = score
                if verdict == "rewrite" and step.rewritable:
                    told = len(own.record.generated)
                    own.rejected = told + len(written) - own.record.running.decided
                own.judged = place + 1
        own.judged = len(own.entries)

    def _ended(self, own: Said) -> Iterator[tuple[int, WrittenStep, list[Signals]]]:
        """Each step that ends there: where, and which of its tokens the record does not have."""
        record = own.record
        if record.trace.policy is None or not any(s.end_reason for _, s in own.entries):
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
            translation = self._sequences.pair.translation
            if translation is not None and not all(
                translation.expressible(own.model, each.token) for each in written
            ):
                break  # it ends in an error once it is told
            step = self._step(own, written, start, told, ended)
            yield place, step, written
            told += len(written)
            start, written = told, []
            ended.append(step.text)

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
            own.reading if begun and running.withheld else None,
        )

    def _ask(self, step: WrittenStep) -> tuple[Verdict, float | None]:
        name = self._policy.name
        try:
            said: Any = self._policy.after(step)
        except StopIteration as error:  # which would end the run's own iteration without a word
            raise RuntimeError(f"{name}.after raised StopIteration") from error
        verdict, score = said if isinstance(said, Judgement) else (said, None)
        if score is not None:
            check_number(f"the score of {name}", score)
            if not math.isfinite(score):
                raise ValueError(f"the score of {name} must be finite, got {score!r}")
        if verdict not in ("keep", "rewrite"):
            raise ValueError(f'{name}.after must return "keep" or "rewrite", got {verdict!r}')
        return verdict, None if score is None else float(score)

    def _rewrite(self, own: Said) -> None:
        """Drops the step that the small model was given; the large model writes it now."""
        record, router = own.record, self._sequences.router
        self._sequences.bring_back(record)
        entropy = next((s.entropy for _, s in own.entries if s.route), record.running.entropy)
        kept = record.running.decided if record.running.withheld else len(record.generated)
        state = router.state(record.row)
        if state["position"] > kept:
            router.rewind(record.row, state["position"] - kept)
        if router.state(record.row)["phase"] == Phase.GLIMPSE:
            router.decide("large", [record.row], self._decided)
        record.drop_step(own.rejected)
        engine = self._sequences.engine
        read = engine.computed("large", record)
        engine.rewind(record)
        if own.reading is not None:
            record.num_aside_tokens += read - engine.computed("large", record)
        ((status, signals),) = read_entries(self._decided, 1)
        assert entropy is not None  # it was glimpsed
        signals.entropy = entropy
        record.drafts.clear()
        record.drafts.room = signals.room
        own.entries[:], own.rewritten = [(status, signals)], True
