"""Steps of which several are written, and one is kept: the loop around the rules that choose.

Each step begins with a sequence that is held where the last one ended. Forks of it draft the step,
all at once and together with those of other problems; a rule keeps one of them, or has the large
model write the step where the others began, and may compare again. What is not kept is cancelled.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glimprouter.chains.candidate_rule import CandidateResult, CandidateRule, Choice
from glimprouter.config import ModelName, check_integer
from glimprouter.policies import Glimpse, Policy, Verdict, WrittenStep

if TYPE_CHECKING:
    from glimprouter.hf import Event, Result, RoutedModel, Run, TokenCounts


class _Writers(Policy):
    """The small model writes what is not given to the large one; steps are remembered."""

    def __init__(self, rule: CandidateRule) -> None:
        self._rule = rule
        self.aside = rule.aside
        self.large: set[tuple[int, int]] = set()  # seeds and random keys
        self.steps: dict[tuple[int, int], WrittenStep] = {}

    @property
    def name(self) -> str:
        """The rule's."""
        return type(self._rule).__name__

    def before(self, glimpse: Glimpse) -> ModelName:
        return "large" if (glimpse.seed, glimpse.substream) in self.large else "small"

    def after(self, step: WrittenStep) -> Verdict:
        self.steps[step.seed, step.substream] = step
        return "keep"


@dataclass
class _Branch:
    """A sequence that writes one step.

    Attributes:
        sequence: Its index.
        key: Its random key.
        before: Its counts when it began.
        began: Its seconds then.
        passes: Of each model, as far as they are in those of the chain.
        written: The step, once it has ended.
        answering: Whether its thinking has ended.
        result: Where all of it has ended.
    """

    sequence: int
    key: int
    before: Mapping[str, TokenCounts]
    began: float = 0.0
    passes: dict[str, int] = field(default_factory=dict)
    written: WrittenStep | None = None
    answering: bool = False
    result: Result | None = None


@dataclass
class _Chain:
    """A problem.

    Attributes:
        place: Among the prompts, and its random key.
        seed: Its seed.
        base: Where the next step begins, held; what it has become at the end.
        drafts: Of the step.
        writing: Branches that have not ended their step.
        choices: So far.
        dropped: So far, as all that follow.
    """

    place: int
    seed: int
    base: _Branch
    drafts: list[_Branch] = field(default_factory=list)
    writing: dict[int, _Branch] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    dropped: dict[str, TokenCounts] = field(default_factory=dict)
    dropped_tokens: dict[str, int] = field(default_factory=lambda: {"small": 0, "large": 0})
    dropped_read: int = 0
    dropped_seconds: float = 0.0
    passes: dict[str, int] = field(default_factory=lambda: {"small": 0, "large": 0})


def write_with_candidates(
    model: RoutedModel,
    prompts: Sequence[Any],
    rule: CandidateRule,
    seeds: int | Sequence[int] | None = None,
    *,
    finished: Callable[[int, CandidateResult], None] | None = None,
    **overrides: Any,
) -> list[CandidateResult]:
    """Answers some prompts, choosing each step of the thinking among drafts of it.

    Args:
        model: A pair; its ``max_sequences`` must hold the drafts of one prompt, and one more. More
            prompts than it holds follow one another. Its own policy is not asked.
        prompts: As for :meth:`RoutedModel.generate`.
        rule: Who chooses.
        seeds: One for all, one a prompt, or None for 0.
        finished: Called with each result once it is there, and the index of its prompt.
        **overrides: Fields of :class:`RouterConfig`, such as ``temperature``.

    Raises:
        TypeError: No rule, or no list of prompts.
        ValueError: Several drafts without temperature, a route that is not decided by a policy, a
            pair that is too small, or that the rule cannot be served for.
        RuntimeError: Invalid logits with ``on_invalid="raise"``, or too little memory.
    """
    if not isinstance(rule, CandidateRule):
        raise TypeError(f"rule must be a CandidateRule, got {type(rule).__name__}")
    check_integer("the rule's candidates", rule.candidates, 1)
    own = model.config.replace(**overrides)
    if rule.candidates > 1 and own.temperature == 0:
        raise ValueError(
            f"{rule.candidates} drafts at temperature 0 are the same; set a temperature above 0"
        )
    if own.route != "auto" or own.first_steps_large:
        raise ValueError('drafts need route="auto" and first_steps_large=0: the rule decides')
    together = model.max_sequences // (rule.candidates + 1)
    if together == 0:
        raise ValueError(
            f"{rule.candidates} drafts and their beginning are {rule.candidates + 1} sequences, and"
            f" the RoutedModel holds {model.max_sequences}; make it with a larger max_sequences"
        )
    from glimprouter.hf.pair.prompts import check_prompts, seeds_of

    check_prompts(prompts)
    writers = _Writers(rule)
    own_pair = copy.copy(model)  # other threads go on with the policy of the pair
    own_pair.policy = writers
    run = own_pair.stream([], **overrides)
    waiting = deque(zip(range(len(prompts)), prompts, seeds_of(seeds, prompts), strict=True))
    found: dict[int, CandidateResult] = {}
    for place, result in _Candidates(run, rule, writers).write(waiting, together):
        found[place] = result
        if finished is not None:
            finished(place, result)
    return [found[place] for place in range(len(prompts))]


class _Candidates:
    """A run, and the chains in it."""

    def __init__(self, run: Run, rule: CandidateRule, writers: _Writers) -> None:
        self._run, self._rule, self._writers = run, rule, writers
        self._chains: list[_Chain] = []
        self._done: list[tuple[int, CandidateResult]] = []

    def write(
        self, waiting: deque[tuple[int, Any, int]], together: int
    ) -> Iterator[tuple[int, CandidateResult]]:
        """The results as they end, each with the place of its prompt."""
        while waiting or self._chains:
            while waiting and len(self._chains) < together:
                place, prompt, seed = waiting.popleft()
                sequence = self._run.add(prompt, seed, substream=place)
                self._run.hold(sequence)
                self._chains.append(_Chain(place, seed, _Branch(sequence, place, {})))
            events = self._run.step()
            ended = {event.sequence: event for event in events if event.result is not None}
            for chain in self._chains:
                self._count(chain, ended)
            stirred = any([self._go_on(chain, events, ended) for chain in list(self._chains)])
            if not events and not stirred:
                raise RuntimeError(
                    "the drafts of a step have no room in memory; make the RoutedModel with a"
                    " larger kv_memory_bytes, or a smaller max_sequences"
                )
            yield from self._done
            self._done = []

    def _count(self, chain: _Chain, ended: Mapping[int, Event]) -> None:
        """Adds the passes since the last time: branches that run together are in the same ones."""
        more = {"small": 0, "large": 0}
        for branch in {id(b): b for b in (chain.base, *chain.drafts)}.values():
            if branch.result is not None or not self._run.has_begun(branch.sequence):
                continue
            if branch.sequence in ended:
                result = ended[branch.sequence].result
                assert result is not None
                counts = result.counts
            else:
                counts = self._run.counts(branch.sequence)
            for name, own in counts.items():
                more[name] = max(more[name], own.passes - branch.passes.get(name, 0))
                branch.passes[name] = own.passes
        for name, count in more.items():
            chain.passes[name] += count

    def _go_on(self, chain: _Chain, events: Sequence[Event], ended: Mapping[int, Event]) -> bool:
        """What follows from a pass for a chain; whether something does."""
        if chain.base.answering:
            if (event := ended.get(chain.base.sequence)) is not None:
                chain.base.result = event.result
                self._finish(chain)
            return chain.base.result is not None
        if not chain.writing:
            return self._begin_step(chain)
        for event in events:
            branch = chain.writing.get(event.sequence)
            if branch is not None and event.kind in ("step", "answer_start", "done"):
                branch.answering |= event.kind == "answer_start"
                branch.result = event.result
        over = [b for b in chain.writing.values() if self._has_ended(b, events)]
        for branch in over:
            # None of a draft that failed, and where the prompt has closed the thinking.
            branch.written = self._writers.steps.pop((chain.seed, branch.key), None)
            del chain.writing[branch.sequence]
        if over and not chain.writing:
            self._choose(chain)
        return bool(over)

    def _has_ended(self, branch: _Branch, events: Sequence[Event]) -> bool:
        kinds = ("step", "answer_start", "done")
        return any(e.sequence == branch.sequence and e.kind in kinds for e in events)

    def _begin_step(self, chain: _Chain) -> bool:
        """Forks the drafts of the next step, once there is something to fork."""
        base, run = chain.base, self._run
        if not run.has_begun(base.sequence):
            return False
        if self._rule.aside is not None and self._rule.candidates > 1 and not chain.choices:
            run.catch_up(base.sequence)  # else each draft has the large model read the prompt
            self._count(chain, {})  # a pass of its own, before those of the drafts
        base.before = run.counts(base.sequence)
        base.began = run.trace(base.sequence).seconds
        for number in range(self._rule.candidates):
            # The chain's own random numbers first; the others' are derived from them.
            sequence = run.fork(base.sequence, substream=None if number else chain.place)
            run.go_on(sequence, one_step=True)
            key = run.trace(sequence).substream
            chain.drafts.append(
                _Branch(sequence, key, base.before, base.began, self._passes(sequence))
            )
        chain.writing = {branch.sequence: branch for branch in chain.drafts}
        return True

    def _passes(self, sequence: int) -> dict[str, int]:
        return {name: counts.passes for name, counts in self._run.counts(sequence).items()}

    def _choose(self, chain: _Chain) -> None:
        usable = [branch for branch in chain.drafts if branch.written is not None]
        drafts = [branch.written for branch in usable if branch.written is not None]
        if chain.base.result is not None and chain.base.written is None:
            self._keep(chain, chain.base)  # the large model was to write, and failed
            return
        if not usable:
            self._keep(chain, chain.drafts[0])  # nothing to choose: an error, or the answer
            return
        if chain.base.written is None:
            choice = self._rule.choose(drafts)
            if choice is None:  # the large model writes where the drafts began
                self._writers.large.add((chain.seed, chain.base.key))
                chain.writing = {chain.base.sequence: chain.base}
                self._run.go_on(chain.base.sequence, one_step=True)
                return
        else:
            self._writers.large.discard((chain.seed, chain.base.key))
            choice = self._rule.settle(drafts, chain.base.written)
        chain.choices.append(choice)
        self._keep(chain, chain.base if choice.kept is None else usable[choice.kept])

    def _keep(self, chain: _Chain, kept: _Branch) -> None:
        """Goes on with a branch, and drops the others."""
        for branch in (*chain.drafts, chain.base):
            if branch is not kept:
                self._drop(chain, branch)
        chain.base, chain.drafts = self._with_own_key(chain, kept), []
        if kept.result is not None:
            self._finish(chain)
        elif kept.answering:
            self._run.go_on(chain.base.sequence)

    def _with_own_key(self, chain: _Chain, kept: _Branch) -> _Branch:
        """The branch that goes on, with the random numbers of the chain from here on."""
        sequence = kept.sequence
        if kept.result is None and kept.key != chain.place:
            sequence = self._run.fork(kept.sequence, substream=chain.place)
            self._run.hold(sequence)
            self._run.cancel(kept.sequence)
            self._run.release(kept.sequence)
        passes = kept.passes if sequence == kept.sequence else self._passes(sequence)
        return _Branch(
            sequence,
            chain.place,
            {},
            passes=passes,
            answering=kept.answering,
            result=kept.result,
        )

    def _drop(self, chain: _Chain, branch: _Branch) -> None:
        """Cancels a branch and counts what it has cost."""
        result = branch.result or self._run.cancel(branch.sequence)
        self._run.release(branch.sequence)
        for name, counts in result.counts.items():
            begun = dataclasses.asdict(branch.before[name])
            spent = {key: n - begun[key] for key, n in dataclasses.asdict(counts).items()}
            if name in chain.dropped:
                so_far = dataclasses.asdict(chain.dropped[name])
                spent = {key: n + so_far[key] for key, n in spent.items()}
            chain.dropped[name] = type(counts)(**spent)
        chain.dropped_seconds += result.trace.seconds - branch.began
        if branch.written is not None:
            tokens = len(branch.written.token_ids)
            chain.dropped_tokens[branch.written.model] += tokens
            if branch.written.aside is not None:
                chain.dropped_read += tokens

    def _finish(self, chain: _Chain) -> None:
        assert chain.base.result is not None
        self._run.release(chain.base.sequence)
        self._chains.remove(chain)
        result = CandidateResult(
            chain.base.result,
            chain.choices,
            chain.dropped,
            chain.dropped_tokens,
            chain.dropped_read,
            chain.dropped_seconds,
            chain.passes,
        )
        self._done.append((chain.place, result))
