"""One sequence of a run: its tokens, what each model has seen, and its trace in the making."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from glimprouter.hf.pair.messages import message_of
from glimprouter.hf.pair.prompts import EncodedPrompt
from glimprouter.hf.pair.text import MODELS, StreamDecoder, TextReader
from glimprouter.hf.sequence.drafts import Drafts
from glimprouter.hf.sequence.events import Event, Result, TokenCounts
from glimprouter.hf.sequence.running_step import RunningStep
from glimprouter.hf.sequence.signals import Signals, TokenStatistics
from glimprouter.hf.sequence.step_so_far import step_so_far
from glimprouter.router import EndReason, Phase
from glimprouter.trace import Trace


@dataclass(slots=True, eq=False)
class SequenceRecord:
    """Bookkeeping of one sequence; the router decides, this remembers.

    Attributes:
        index: Index of the sequence in its run; prompts come first.
        prompt: Ids for both models.
        row: Row of the router.
        generated: Ids after the prompt, each of its writer's vocabulary; the shared frontier is
            their number.
        writers: Who wrote each, as an index of ``MODELS``.
        trace: Filled as steps finish.
        closing_writer: Whose vocabulary the closing ids are of; None: both models'.
        max_new_tokens: Tokens that it may generate, all told.
        step_starts: Index of the first generated id of each step of the trace.
        passes: For each model, how many of its tokens it had computed when a forward pass began.
        repeats: After a rewind: whether passes are computed again as a whole.
        thinks: Whether an answer follows the thinking; else all of the text is the answer.
        drafts: Of the step, or the answer, that it lets the large model write.
        num_passes: Forward passes of each model that it was part of.
        statistics: Of its tokens, where a policy reads them.
        num_rewritten: Tokens of the small model that were dropped with steps that were rewritten.
        num_asides: Passes of the large model that read a step for a policy.
        num_aside_tokens: Tokens that it computed in them, and dropped.
        running: The step that has not ended.
        closed_at: Tokens before the closing ids that a budget has forced; -1 for none. They may
            come in the middle of a character, which the whole text does not show then.
    """

    index: int
    prompt: EncodedPrompt
    trace: Trace
    reader: TextReader
    close_ids: list[int]
    stream_tokens: bool
    closing_writer: str | None = None
    max_new_tokens: int = 0
    row: int = -1
    generated: list[int] = field(default_factory=list)
    writers: list[int] = field(default_factory=list)
    answering: bool = False
    answer_start: int = 0
    done: bool = False
    step_starts: list[int] = field(default_factory=list)
    passes: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in MODELS})
    repeats: bool = True
    thinks: bool = True
    closed_at: int = -1
    drafts: Drafts = field(default_factory=Drafts)
    num_passes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MODELS, 0))
    statistics: TokenStatistics = field(default_factory=TokenStatistics)
    num_rewritten: int = 0
    num_asides: int = 0
    num_aside_tokens: int = 0
    running: RunningStep = field(default_factory=lambda: RunningStep(0))
    _decoder: StreamDecoder | None = None

    def __post_init__(self) -> None:
        """Prepares incremental decoding, behind what there is, when tokens are streamed."""
        if self.stream_tokens:
            self._decoder = self.reader.incremental()
            for place in range(self.shown):
                if place == self.closed_at:
                    self._decoder.drop_unfinished()
                self._decoder.push(self.generated[place], self.writers[place])

    @property
    def at_step_start(self) -> bool:
        """Whether what comes next is the first token of a step: a rewind may lead here."""
        return not self.answering and self.running.start == len(self.generated)

    @property
    def shown(self) -> int:
        """Generated tokens whose events do not wait for a policy to keep their step."""
        return self.running.decided if self.running.withheld else len(self.generated)

    def prompt_of(self, model: str) -> list[int]:
        """The prompt's ids for a model."""
        return self.prompt.small if model == "small" else self.prompt.large

    def written_since(self, known: int) -> Iterator[tuple[int, list[int]]]:
        """Generated ids behind the first ``known``, in runs of one writer (index of ``MODELS``)."""
        for writer, places in groupby(range(known, len(self.generated)), self.writers.__getitem__):
            yield writer, [self.generated[place] for place in places]

    def copy(self, index: int, substream: int) -> SequenceRecord:
        """Another sequence with the same past; no row yet."""
        return dataclasses.replace(
            self,
            index=index,
            row=-1,
            trace=dataclasses.replace(
                self.trace,
                steps=list(self.trace.steps),
                answer_drafted=list(self.trace.answer_drafted),
                substream=substream,
            ),
            generated=list(self.generated),
            writers=list(self.writers),
            step_starts=list(self.step_starts),
            passes={name: list(starts) for name, starts in self.passes.items()},
            drafts=self.drafts.copy(),
            num_passes=dict(self.num_passes),
            statistics=self.statistics.copy(),
            running=dataclasses.replace(self.running, drafted=list(self.running.drafted)),
        )

    def rewind(self, kept: int, phase: Phase) -> None:
        """Drops the generated ids behind the first ``kept``; the router is in ``phase`` then."""
        running = self.running
        while self.step_starts and self._last_end() > kept:
            step, start = self.trace.steps.pop(), self.step_starts.pop()
            known = (step.model, step.entropy, step.seconds, step.drafted, step.rewritten)
            running = RunningStep(start, *known, score=step.score)
        self.answering = phase == Phase.ANSWER
        start = self._last_end()
        if not self.answering:
            decided = running.start == start < kept and phase != Phase.GLIMPSE
            writer = "large" if phase == Phase.LARGE_STEP else "small"
            self.running = running if decided else RunningStep(start, writer)
            self.running.drafted = [p for p in self.running.drafted if start + p < kept]
            self.trace.answer_drafted.clear()
        else:
            places = self.trace.answer_drafted
            places[:] = [place for place in places if self.answer_start + place < kept]
        del self.generated[kept:], self.writers[kept:]
        self.statistics.cut(kept)
        if kept <= self.closed_at:
            self.closed_at = -1
        self.__post_init__()

    def note_pass(self, model: str, start: int) -> None:
        """A forward pass of a model began at so many of its tokens, and has succeeded."""
        self.num_passes[model] += 1
        self.note_start(model, start)

    def note_start(self, model: str, start: int) -> None:
        """What a model computes again of its tokens, as a whole, begins at so many of them."""
        starts = self.passes[model]
        del starts[bisect_left(starts, start) :]
        starts.append(start)

    def kept_of(self, model: str, computed: int, *, cut: bool) -> int:
        """Tokens that a model keeps of those it has computed, to go on from there.

        Args:
            model: Its name.
            computed: Tokens.
            cut: Whether it has computed more, which was dropped; else its last logits are wanted
                once more.
        """
        starts = self.passes[model]
        place = bisect_left(starts, computed)
        if cut and (not self.repeats or place == len(starts) or starts[place] == computed):
            return computed
        return starts[place - 1] if self.repeats and place else computed - 1

    def _last_end(self) -> int:
        """Where the last finished step ends."""
        return self.step_starts[-1] + self.trace.steps[-1].num_tokens if self.step_starts else 0

    def advance(
        self, model: str, signals: Signals, seconds: float, *, drafted: bool = False
    ) -> list[Event]:
        """Takes over what one router call said; returns what happened, in order.

        Args:
            model: Who was asked.
            signals: The row's outputs.
            seconds: Of the pass.
            drafted: Whether the small model had drafted the token.
        """
        events: list[Event] = []
        step = self.running
        if self.answering:
            self.trace.answer_seconds += seconds
        else:
            step.seconds += seconds
        if signals.route:
            step.entropy = signals.entropy
            step.model = "large" if signals.route == 2 else "small"
            if not step.withheld:
                events.append(self._route_event())
        if signals.token < 0:
            return events
        if self.answering and not self.generated:  # the prompt had closed the thinking
            events.append(Event(self.index, "answer_start", model=self.trace.answer_model))
        if not self.answering and step.entropy is None:
            step.model = model
        if drafted:
            places = self.trace.answer_drafted if self.answering else step.drafted
            places.append(
                len(self.generated) - (self.answer_start if self.answering else step.start)
            )
        self.statistics.note(len(self.generated), signals)
        events += self._commit(model, signals.token)
        if signals.forced:
            self.closed_at = len(self.generated)
        if signals.end_reason and not self.answering:
            events += self._finish_step(EndReason(signals.end_reason))
        if signals.forced:
            events += self._append_closing_ids(model)
        if signals.phase == Phase.ANSWER and not self.answering:
            events.append(self._begin_answer())
        if signals.phase == Phase.DONE:
            events += self.finish(EndReason(signals.end_reason).name.lower())
        return events

    def end_thinking(self, budget: int, phase: Phase) -> list[Event]:
        """Ends the thinking here, as the router has; returns what happened, in order.

        Args:
            budget: Tokens of the thinking.
            phase: Of the router.
        """
        events: list[Event] = []
        self.trace.think_limit = budget
        if self.close_ids:
            self.closed_at = len(self.generated)
        if self.running.start < len(self.generated):
            events += self._finish_step(EndReason.BUDGET)
        if self.close_ids:
            events += self._append_closing_ids(MODELS[self.writers[-1]])
        if phase == Phase.DONE:
            return events + self.finish(EndReason.BUDGET.name.lower())
        return [*events, self._begin_answer()]

    def _append_closing_ids(self, model: str) -> list[Event]:
        events: list[Event] = []
        if self._decoder is not None:
            self._decoder.drop_unfinished()
        for token in self.close_ids:
            events += self._commit(self.closing_writer or model, token)
        self.running.start = len(self.generated)  # the closing ids are no step
        return events

    def _begin_answer(self) -> Event:
        self.answering = True
        self.answer_start = len(self.generated)
        return Event(self.index, "answer_start", model=self.trace.answer_model)

    def _commit(self, model: str, token: int) -> list[Event]:
        writer = MODELS.index(model)
        self.generated.append(token)
        self.writers.append(writer)
        return [] if self.running.withheld else self._token_event(len(self.generated) - 1)

    def _route_event(self) -> Event:
        step, tau = self.running, self.trace.threshold
        return Event(self.index, "route", model=step.model, entropy=step.entropy, threshold=tau)

    def _show(self) -> list[Event]:
        """Events of the running step that have waited."""
        if not self.running.withheld:
            return []
        start, self.running.withheld = self.shown, False
        events = [self._route_event()]
        for place in range(start, len(self.generated)):
            events += self._token_event(place)
        return events

    def _token_event(self, place: int) -> list[Event]:
        if self._decoder is None:
            return []
        token, writer = self.generated[place], self.writers[place]
        text = self._decoder.push(token, writer)
        return [Event(self.index, "token", token_id=token, text=text, model=MODELS[writer])]

    def drop_step(self, written: int) -> None:
        """Drops what the small model has written of the step that it was given.

        Args:
            written: Tokens, that which the record has not been told of included.
        """
        step = self.running
        if not step.withheld:
            return  # an interrupt came behind it
        del self.generated[step.decided :], self.writers[step.decided :]
        self.statistics.cut(step.decided)
        self.num_rewritten += written
        self.running = dataclasses.replace(
            step, model="large", rewritten=step.rewritten + written, withheld=False, decided=-1
        )

    def _finish_step(self, reason: EndReason) -> list[Event]:
        """Ends the running step. End of thinking or sequence, behind white space, is no step."""
        shown = self._show()
        start = self.running.start
        step = step_so_far(self, reason.name.lower())
        self.running = RunningStep(len(self.generated))
        ends = reason in (EndReason.THINK_END, EndReason.EOS)
        alone = ends and not self.text(start, len(self.generated) - 1).strip()
        if alone:
            self.trace.answer_seconds += step.seconds
            return shown
        self.trace.steps.append(step)
        self.step_starts.append(start)
        return [*shown, Event(self.index, "step", model=step.model, step=step)]

    def text(self, start: int, end: int, *, skip_special: bool = False) -> str:
        """Text of a part of what was generated."""
        return self.reader.decode(
            self.generated[start:end],
            self.writers[start:end],
            skip_special=skip_special,
            cut=self.closed_at - start if start < self.closed_at <= end else None,
        )

    def finish(self, reason: str, error: str | None = None) -> list[Event]:
        """Ends the sequence; an unfinished step is kept with this reason.

        The "done" event is left to the run: its result needs the tokens of the large model.
        """
        events = self._show()
        if not self.answering and self.running.start < len(self.generated):
            step = step_so_far(self, reason)
            self.step_starts.append(self.running.start)
            self.trace.steps.append(step)
            self.running = RunningStep(len(self.generated))
        self.done = True
        if self._decoder is not None and (rest := self._decoder.flush()):
            events.append(Event(self.index, "token", text=rest))
        self.update_trace(reason, error)
        if error is not None:
            events.append(Event(self.index, "error", message=error))
        return events

    def update_trace(self, reason: str, error: str | None = None) -> None:
        """Writes answer and totals so far into the trace."""
        end = len(self.generated)
        start = self.answer_start if self.answering else end
        answer = self.text(start if self.thinks else 0, end, skip_special=True)
        self.trace.answer = answer.strip()
        self.trace.answer_tokens = end - start
        self.trace.total_tokens = end
        self.trace.end_reason = reason
        self.trace.error = error

    def interrupted_trace(self) -> Trace:
        """The trace so far, the unfinished step included; the sequence goes on as it would have."""
        if self.done:
            return self.trace
        steps = list(self.trace.steps)
        self.update_trace("interrupted")
        if not self.answering and self.running.start < len(self.generated):
            steps.append(step_so_far(self, "interrupted"))
        drafted = list(self.trace.answer_drafted)
        return dataclasses.replace(self.trace, steps=steps, answer_drafted=drafted)

    def result(self, token_ids: list[int], counts: dict[str, TokenCounts]) -> Result:
        """The sequence as a result."""
        text = self.text(0, len(self.generated), skip_special=True)
        message = message_of(
            self.reader.large_tokenizer, self.prompt.large, token_ids, self.prompt.tools
        )
        return Result(text, self.trace.answer, token_ids, self.trace, counts, message)
