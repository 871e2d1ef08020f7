"""A plain model of step-wise collaboration: lists, dicts and text search, no automaton, no replay.

Written from the rules (docs/architecture.md), not from the native code: what was written is kept as
bytes and searched again for every token, steps are compared as bytes, and every committed token
leaves a copy of the sequence to which a rewind returns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glimprouter import EndReason, Phase, Route, RouterConfig, Status
from row_reference import entropies, log_probability

# None: special tokens, which interrupt a delimiter.
VOCABULARY: tuple[bytes | None, ...] = (
    *(b"a", b"b", b"c", b" ", b"\n", b"\n\n", b".\n\n", b"d\n"),
    *(b"\n\ne", None, None, None, None, None, b"\t ", b"\n\n\n"),
)
A, B, C, SPACE, NEWLINE, BLANK_LINE, DOT_BLANK_LINE, D_NEWLINE = range(8)
BLANK_LINE_E, THINK, END_THINK, EOS, EOS_2, PAD, TAB, THREE_NEWLINES = range(8, 16)
DELIMITERS = ("\n\n",)
CLOSE_IDS = (NEWLINE, END_THINK, BLANK_LINE)
_INTERRUPTION = b"\xff"  # in no token


@dataclass
class Expected:
    """What a call must say about one row."""

    token: int = -1
    status: Status = Status.OK
    route: Route = Route.NONE
    phase: Phase = Phase.GLIMPSE
    end_reason: EndReason = EndReason.NONE
    step_index: int = 0
    forced: int = 0
    room: int = 0
    entropy: float = math.nan


@dataclass
class Sequence:
    """What is known of a sequence after each committed token."""

    config: RouterConfig
    phase: Phase = Phase.GLIMPSE
    position: int = 0
    step_index: int = 0
    step_tokens: int = 0
    think_tokens: int = 0
    answer_tokens: int = 0
    large_tokens: int = 0  # the large model's first ones of the running step
    text: bytes = b""  # of the whole thinking, with interruptions
    step_text: bytes = b""  # of the running step
    visible: bytes = b""  # of the running step, without white space
    finished: list[bytes] = field(default_factory=list)
    candidate: tuple[int, float, float] | None = None  # of a manual glimpse, as `sums`
    sums: tuple[float, float] = (0.0, 0.0)  # log-probabilities and entropies of the running step

    def begin_step(self) -> None:
        """Says who is asked first."""
        self.step_tokens, self.step_text, self.visible = 0, b"", b""
        self.large_tokens = 0
        if self.config.route == "small":
            self.phase = Phase.SMALL_STEP
        elif self.config.route == "large" or self.step_index < self.config.first_steps_large:
            self.phase = Phase.LARGE_STEP
        else:
            self.phase = Phase.GLIMPSE

    def begin_answer(self) -> None:
        """The answer, or the end when there is to be none."""
        self.phase = Phase.ANSWER if self.config.max_answer_tokens else Phase.DONE

    def finish_thinking(self, reason: EndReason) -> tuple[EndReason, int]:
        """Closes the thinking by force."""
        self.position += len(CLOSE_IDS)
        self.begin_answer()
        return reason, len(CLOSE_IDS)

    def finish_step(self, reason: EndReason) -> tuple[EndReason, int]:
        """Counts the step and goes on with the next, unless the text goes in circles."""
        self.finished.append(self.visible)
        if self.config.repetition_guard and in_circles(self.finished):
            return self.finish_thinking(EndReason.REPETITION)
        self.step_index += 1
        self.begin_step()
        return reason, 0

    def commit(self, token: int) -> tuple[EndReason, int]:
        """Adds a token; returns why a step (or the answer) ended, and the closing ids appended."""
        self.position += 1
        if self.phase == Phase.ANSWER:
            return self.commit_answer(token)
        self.think_tokens += 1
        self.step_tokens += 1
        ends_step = self.write(token)
        if token in (EOS, EOS_2):
            self.phase = Phase.DONE
            return EndReason.EOS, 0
        if token == END_THINK:
            self.begin_answer()
            return EndReason.THINK_END, 0
        if self.think_tokens >= self.config.max_think_tokens:
            return self.finish_thinking(EndReason.BUDGET)
        if ends_step:
            return self.finish_step(EndReason.DELIMITER)
        if self.step_tokens >= self.config.max_step_tokens:
            return self.finish_step(EndReason.CAP)
        if self.phase == Phase.GLIMPSE and not opens_no_step(token):
            self.phase = Phase.SMALL_STEP
        forced = self.config.route == "large" or self.step_index < self.config.first_steps_large
        if self.phase == Phase.LARGE_STEP and not forced:
            self.large_tokens += 1
            if self.large_tokens == self.config.large_tokens:
                self.phase = Phase.SMALL_STEP
        return EndReason.NONE, 0

    def commit_answer(self, token: int) -> tuple[EndReason, int]:
        """The same in the answer."""
        self.answer_tokens += 1
        if token in (EOS, EOS_2):
            self.phase = Phase.DONE
            return EndReason.EOS, 0
        if self.answer_tokens >= self.config.max_answer_tokens:
            self.phase = Phase.DONE
            return EndReason.ANSWER_BUDGET, 0
        return EndReason.NONE, 0

    def write(self, token: int) -> bool:
        """Adds the token's bytes; whether a delimiter ends in them, behind text of this step."""
        written = VOCABULARY[token]
        if written is None:
            self.text += _INTERRUPTION
            self.visible += _INTERRUPTION
            return False
        self.visible += b"".join(written.split())
        ends = False
        for byte in written:
            self.text += bytes([byte])
            self.step_text += bytes([byte])
            after_text = bool(self.step_text.strip())
            ends |= after_text and self.text.endswith(tuple(d.encode() for d in DELIMITERS))
        return ends


def is_white_space(token: int) -> bool:
    """Whether the token writes white space only."""
    written = VOCABULARY[token]
    return written is not None and written.isspace()


def opens_no_step(token: int) -> bool:
    """Whether the token is no step's first: no decision is made for it."""
    return token == THINK or is_white_space(token)


def in_circles(steps: list[bytes]) -> bool:
    """Whether the last L steps equal the L before, for an L of 1 to 8; three steps at least."""
    return len(steps) >= 3 and any(
        len(steps) >= 2 * length and steps[-length:] == steps[-2 * length : -length]
        for length in range(1, 9)
    )


def writer_of(sequence: Sequence) -> str | None:
    """Whose logits a sequence waits for."""
    if sequence.phase == Phase.ANSWER:
        return sequence.config.answer_model
    small, large = (Phase.GLIMPSE, Phase.SMALL_STEP), (Phase.LARGE_STEP,)
    return "small" if sequence.phase in small else "large" if sequence.phase in large else None


def standing(sequence: Sequence) -> tuple[int, bool, str | None]:
    """What a draft of the next token builds upon."""
    return sequence.position, sequence.phase == Phase.ANSWER, writer_of(sequence)


def goes_on(before: tuple[int, bool, str | None], sequence: Sequence) -> bool:
    """Whether one token came, and the same model goes on with the same thing."""
    position, answers, writer = before
    return standing(sequence) == (position + 1, answers, writer)


def room(sequence: Sequence) -> int:
    """How long the model that a sequence waits for can write on: tried with plain text."""
    trial = replace(sequence, config=sequence.config.replace(repetition_guard=False))
    trial.finished = []
    written = 0
    while writer_of(trial) is not None:
        before = standing(trial)
        trial.commit(A)
        written += 1
        if not goes_on(before, trial):
            break
    return written


class RouterModel:
    """What StepRouter must do, row by row. Logits come in as the chosen token and a row."""

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.sequences: dict[int, Sequence] = {}
        self.histories: dict[int, list[Sequence]] = {}  # after each committed token

    def open(self, row: int, overrides: Mapping[str, Any]) -> None:
        sequence = Sequence(self.config.replace(**overrides))
        sequence.begin_step()
        self.sequences[row] = sequence
        self.histories[row] = [copy.deepcopy(sequence)]

    def close(self, row: int) -> None:
        del self.sequences[row], self.histories[row]

    def copy(self, source: int, target: int) -> None:
        self.sequences[target] = copy.deepcopy(self.sequences[source])
        self.histories[target] = copy.deepcopy(self.histories[source])

    def snapshot(self, row: int) -> tuple[Sequence, list[Sequence]]:
        return copy.deepcopy((self.sequences[row], self.histories[row]))

    def restore(self, row: int, saved: tuple[Sequence, list[Sequence]]) -> None:
        self.sequences[row], self.histories[row] = copy.deepcopy(saved)

    def rewind(self, row: int, count: int) -> bool:
        """Returns False, and changes nothing, where no token ended at that position."""
        target = self.sequences[row].position - count
        history = self.histories[row]
        places = [i for i, sequence in enumerate(history) if sequence.position == target]
        if not places:
            return False
        del history[places[0] + 1 :]
        self.sequences[row] = copy.deepcopy(history[-1])
        return True

    def end_thinking(self, row: int) -> bool:
        """Returns False, and changes nothing, where there is no thinking to end."""
        sequence, history = self.sequences[row], self.histories[row]
        over = sequence.phase in (Phase.ANSWER, Phase.DONE)
        if over or sequence.think_tokens == 0:
            return False
        for earlier in (*history, sequence):
            earlier.config = earlier.config.replace(max_think_tokens=sequence.think_tokens)
        before = history[-2]  # the last token ends the thinking, and nothing else
        sequence.step_index, sequence.step_tokens = before.step_index, before.step_tokens + 1
        sequence.finished, sequence.candidate = list(before.finished), None
        sequence.sums = 0.0, 0.0
        sequence.finish_thinking(EndReason.BUDGET)
        history[-1] = copy.deepcopy(sequence)
        return True

    def pending(self, model: str) -> list[int]:
        wanted = {
            "small": {Phase.GLIMPSE, Phase.SMALL_STEP},
            "large": {Phase.LARGE_STEP},
        }[model]
        return [
            row
            for row, sequence in sorted(self.sequences.items())
            if sequence.phase in wanted
            or (sequence.phase == Phase.ANSWER and sequence.config.answer_model == model)
        ]

    def awaiting_decision(self) -> list[int]:
        return sorted(row for row, s in self.sequences.items() if s.phase == Phase.AWAIT_DECISION)

    def unseen(self) -> list[int]:
        """Rows of the manual route that wait for a glimpse."""
        return sorted(
            row
            for row, s in self.sequences.items()
            if s.phase == Phase.GLIMPSE and s.config.route == "manual"
        )

    def step(self, row: int, logits: NDArray[Any]) -> Expected:
        """One row of a call; `logits` is valid and its largest element is the chosen token."""
        expected = self._step(row, logits)
        expected.room = room(self.sequences[row])
        return expected

    def verify(
        self, row: int, rows: ListOf[NDArray[Any] | Status], drafts: ListOf[int]
    ) -> list[Expected]:
        """The rows of a sequence, one behind what it has and one behind each draft.

        A status stands for a row with that fault.
        """
        said: list[Expected] = []
        for place, logits in enumerate(rows):
            before = standing(self.sequences[row])
            said.append(
                self.invalid(row, logits) if isinstance(logits, Status) else self.step(row, logits)
            )
            held = place < len(drafts) and said[-1].token == drafts[place]
            if not (held and goes_on(before, self.sequences[row])):
                break
        behind = self._not_reached(row, room(self.sequences[row]))
        return said + [behind] * (len(rows) - len(said))

    def draft(self, row: int, logits: NDArray[Any] | Status, drafts: ListOf[int]) -> Expected:
        """What a step would say behind the drafts; nothing changes."""
        saved = self.snapshot(row)
        try:
            for token in drafts:
                before = standing(self.sequences[row])
                self.sequences[row].commit(token)
                if not goes_on(before, self.sequences[row]):
                    return self._not_reached(row, 0)
            if isinstance(logits, Status):
                return self.invalid(row, logits)
            return self.step(row, logits)
        finally:
            self.restore(row, saved)

    def _not_reached(self, row: int, left: int) -> Expected:
        phase = self.sequences[row].phase
        return Expected(status=Status.NOT_REACHED, phase=phase, step_index=-1, room=left)

    def _step(self, row: int, logits: NDArray[Any]) -> Expected:
        sequence = self.sequences[row]
        token = int(np.argmax(logits))
        k = sequence.config.entropy_top_k or len(logits)
        entropy = float(entropies(logits)[min(k, len(logits)) - 1])
        expected = Expected(phase=sequence.phase, step_index=self.step_index(row), entropy=entropy)
        if sequence.phase == Phase.GLIMPSE and not opens_no_step(token):
            if sequence.config.route == "manual":
                sequence.phase = expected.phase = Phase.AWAIT_DECISION
                sequence.candidate = token, log_probability(logits, token), entropy
                return expected
            threshold = sequence.config.threshold
            equal = sequence.config.comparison == ">=" and entropy == threshold
            if entropy > threshold or equal:
                sequence.phase = expected.phase = Phase.LARGE_STEP
                expected.route = Route.LARGE
                return expected
            expected.route = Route.SMALL
        self._commit(row, token, expected, log_probability(logits, token), entropy)
        return expected

    def invalid(self, row: int, status: Status) -> Expected:
        """One row of a call whose logits are invalid."""
        sequence = self.sequences[row]
        return Expected(
            status=status,
            phase=sequence.phase,
            step_index=self.step_index(row),
            room=room(sequence),
        )

    def decide(self, row: int, model: str) -> Expected:
        sequence = self.sequences[row]
        token, logprob, entropy = sequence.candidate or (-1, math.nan, math.nan)
        assert token >= 0 or (model, sequence.phase) == ("large", Phase.GLIMPSE)
        sequence.candidate = None
        expected = Expected(step_index=sequence.step_index, entropy=entropy)
        if model == "large":
            sequence.phase = expected.phase = Phase.LARGE_STEP
            expected.route, expected.room = Route.LARGE, room(sequence)
            return expected
        sequence.phase = Phase.GLIMPSE
        expected.route = Route.SMALL
        self._commit(row, token, expected, logprob, entropy)
        expected.room = room(sequence)
        return expected

    def step_index(self, row: int) -> int:
        """Of the step that the next token belongs to; -1 in the answer."""
        sequence = self.sequences[row]
        return -1 if sequence.phase == Phase.ANSWER else sequence.step_index

    def rewindable(self, row: int) -> Iterable[int]:
        """Counts that a rewind accepts."""
        position = self.sequences[row].position
        return sorted(position - earlier.position for earlier in self.histories[row])

    def _commit(
        self, row: int, token: int, expected: Expected, logprob: float, entropy: float
    ) -> None:
        sequence = self.sequences[row]
        expected.token = token
        expected.end_reason, expected.forced = sequence.commit(token)
        expected.phase = sequence.phase
        sequence.sums = sequence.sums[0] + logprob, sequence.sums[1] + entropy
        if sequence.phase in (Phase.ANSWER, Phase.DONE) or sequence.step_tokens == 0:
            sequence.sums = 0.0, 0.0
        self.histories[row].append(copy.deepcopy(sequence))
