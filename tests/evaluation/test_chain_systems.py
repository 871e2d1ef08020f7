"""Systems around the chain as arms: what they decide, and what it costs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glimprouter as gr
from evaluation_runs import LIMITS, evaluated, pair, task
from glimprouter.chains import AdaptiveResolution, fractured_sampling, reduced_copy
from glimprouter.demo_pair import large_path, small_path
from glimprouter.evaluation import Plan, evaluate, read_records
from glimprouter.evaluation.chain_systems import DevelopmentChains
from glimprouter.evaluation.chain_systems.fractured import Fractured
from glimprouter.evaluation.chain_systems.spirit import Spirit
from glimprouter.evaluation.outcomes import Outcome
from glimprouter.evaluation.record_file import RecordFile, Records
from glimprouter.evaluation.records import ProblemRecord, Record, StepRecord
from glimprouter.evaluation.report import write_report
from glimprouter.evaluation.rules import RULES
from glimprouter.evaluation.solving import problem_seed
from glimprouter.hf import Result, RoutedModel
from hf_runs import routed

PROBLEMS = 6
DEVELOPMENT = 8
SYSTEMS = ("do-stop-me-now", "self-route", "laser", "a2r", "fractured", "spirit", "ari", "ftp")
ARMS = [*SYSTEMS[:3], "a2r:explorers=2", "fractured:chains=2", *SYSTEMS[5:]]
SIZES: dict[str, Any] = {
    "problems": PROBLEMS,
    "development_problems": DEVELOPMENT,
    "batch": PROBLEMS,
    "seeds": 2,
    "timing_batches": [],
    "probe_problems": 0,
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return read_records(evaluated(tmp_path_factory.mktemp("systems"), policies=ARMS, **SIZES))


def of(records: Records, rule: str, seed: int = 0) -> list[ProblemRecord]:
    """Report problems of a system, in the order of the task."""
    found = {
        record.problem: record
        for unit, record in records.problems.items()
        if unit.split == "report" and unit.arm.split()[0] == rule and unit.seed == seed
    }
    return [found[problem.key] for problem in task().problems(PROBLEMS, "report")]


def texts_of(records: Records, record: ProblemRecord) -> list[str]:
    return [step.text for step in steps_of(records, record)]


def steps_of(records: Records, record: ProblemRecord) -> list[StepRecord]:
    return records.steps.get(record.unit, [])


@cache
def alone(
    writer: gr.ModelName, split: str = "report", places: tuple[int, ...] | None = None
) -> list[Result]:
    """Problems by one model; draws depend on the place in a batch."""
    count = PROBLEMS if split == "report" else DEVELOPMENT
    problems = task().problems(count, split)  # type: ignore[arg-type]
    seeds = [problem_seed(0, p) if split == "report" else n for n, p in enumerate(problems)]
    if places is not None:
        problems, seeds = [problems[n] for n in places], [seeds[n] for n in places]
    results: list[Result] = []
    for start in range(0, len(problems), SIZES["batch"]):  # as the systems read them
        chunk = slice(start, start + SIZES["batch"])
        prompts = [problem.prompt for problem in problems[chunk]]
        results += pair().generate(prompts, seeds[chunk], route=writer, answer_model=writer)
    return results


def prompts_of(split: str = "report") -> list[list[int]]:
    count = PROBLEMS if split == "report" else DEVELOPMENT
    return [
        pair().tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.prompt}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for problem in task().problems(count, split)  # type: ignore[arg-type]
    ]


@torch.inference_mode()
def last(model: Any, ids: Sequence[int], *, hidden: bool = False) -> np.ndarray[Any, Any]:
    """Log-probabilities, or the hidden state, behind a text, in float64."""
    output = model(torch.tensor([list(ids)]), output_hidden_states=hidden)
    values = output.hidden_states[-1][0, -1] if hidden else output.logits[0, -1]
    return (values if hidden else torch.log_softmax(values.double(), -1)).double().numpy()


def right_on_development() -> list[bool]:
    problems = task().problems(DEVELOPMENT, "development")
    results = alone("small", "development")
    return [task().is_correct(p, r.answer) for p, r in zip(problems, results, strict=True)]


@pytest.mark.parametrize("rule", SYSTEMS[:3])
def test_the_chain_is_that_of_the_model_that_was_chosen(records: Records, rule: str) -> None:
    found = of(records, rule)
    chosen = [place for place, record in enumerate(found) if record.decision]
    chains = dict(zip(chosen, alone("large", places=tuple(chosen)), strict=True))
    others = tuple(place for place in range(PROBLEMS) if place not in chosen)
    first = tuple(range(PROBLEMS)) if rule == "laser" else others
    small = dict(zip(first, alone("small", places=first), strict=True))
    for place, record in enumerate(found):
        result = chains.get(place) or small[place]
        writer = "large" if place in chains else "small"
        own = (record.small_tokens, record.large_tokens)
        assert own[writer == "large"] == len(result.token_ids)
        assert own[writer == "small"] == 0
        assert record.answer == result.answer
        assert texts_of(records, record) == [step.text for step in result.trace.steps]
        # The problem was read once more, and by LaSeR the whole chain.
        passes = small[place].counts["small"].passes if place in small else 0
        assert record.small_passes == passes + 1
        assert record.large_passes == result.counts["large"].passes


def test_neighbours_vote(records: Records) -> None:
    """k = 3 by hand: the development problems nearest in the first token's log-probabilities."""
    small, right = pair().small, right_on_development()
    known = np.stack([last(small, ids) for ids in prompts_of("development")])
    for ids, record in zip(prompts_of(), of(records, "do-stop-me-now"), strict=True):
        nearest = np.argsort(((known - last(small, ids)) ** 2).sum(axis=1))[:3]
        wrong = sum(not right[place] for place in nearest)
        assert record.decision == (1.0 if wrong >= 2 else 0.0)


def test_a_router_reads_the_hidden_state(records: Records) -> None:
    from sklearn.linear_model import LogisticRegression

    small, right = pair().small, right_on_development()
    known = np.stack([last(small, ids, hidden=True) for ids in prompts_of("development")])
    center, spread = known.mean(axis=0), known.std(axis=0)
    fitted = LogisticRegression(max_iter=1000).fit((known - center) / spread, np.invert(right))
    for ids, record in zip(prompts_of(), of(records, "self-route"), strict=True):
        point = (last(small, ids, hidden=True) - center) / spread
        chance = fitted.predict_proba([point])[0, 1]
        if abs(chance - 0.5) > 1e-3:
            assert record.decision == float(chance > 0.5)


def test_the_lowest_self_rewards_are_solved_anew(records: Records) -> None:
    small = pair().small

    def behind(split: str) -> np.ndarray[Any, Any]:
        texts = zip(prompts_of(split), alone("small", split), strict=True)
        return np.stack([last(small, [*ids, *result.token_ids]) for ids, result in texts])

    known = behind("development")
    token = int(known.mean(axis=0).argmin())
    bound = np.quantile(known[:, token], 0.25)
    for logprob, record in zip(behind("report")[:, token], of(records, "laser"), strict=True):
        assert record.decision == float(logprob < bound)
        # It was read once more, and written in vain where the large model solved the problem.
        assert record.small_unused == (record.small_passes - 1) * (1 + (record.decision or 0))


def test_a_synthesizer_reads_the_answers_of_all(records: Records) -> None:
    problems = task().problems(PROBLEMS, "report")
    for problem, record in zip(problems, of(records, "a2r"), strict=True):
        first = problem_seed(0, problem)
        assert record.small_tokens == 0
        assert record.large_tokens > 0
        assert record.decision in (0.0, 0.5, 1.0)
        small = pair().generate(
            [problem.prompt] * 2, [first, first + 1], route="small", answer_model="small"
        )
        # The draws depend on the place in the batch, the cost of a chain on its length only.
        assert record.small_passes < record.small_unused <= 2 * record.small_passes
        assert all(one.counts["large"].passes == 0 for one in small)


def test_cuts_vote(records: Records) -> None:
    for problem, record in zip(
        task().problems(PROBLEMS, "report"), of(records, "fractured"), strict=True
    ):
        one = fractured_sampling(
            pair(),
            problem.prompt,
            chains=2,
            depths=2,
            seed=problem_seed(0, problem),
            route="small",
            answer_model="small",
        )
        assert record.answer == one.vote.answer
        assert record.large_passes == record.large_unused == 0
        assert record.small_passes == max(f.result.counts["small"].passes for f in one.fractures)
        assert record.decision == one.vote.votes / one.vote.cast
        written = sum(fracture.written for fracture in one.fractures)
        assert record.small_tokens + record.small_unused == written
        assert record.large_tokens == 0


def test_idle_steps_are_left_out(records: Records) -> None:
    for place, record in enumerate(of(records, "spirit")):
        whole = [step.text for step in alone("large")[place].trace.steps]
        kept = texts_of(records, record)
        assert record.decision == len(kept) / len(whole)
        assert 0 < len(kept) < len(whole)
        rest = iter(whole)
        assert all(text in rest for text in kept)  # in their order
        first = alone("large")[place].counts["large"].passes
        again = record.large_passes - first - len(whole) - 1
        assert 0 < again <= LIMITS["max_answer_tokens"]
        kept_tokens = sum(step.tokens for step in steps_of(records, record))
        assert record.large_tokens == kept_tokens + 1 + again  # with the end of the thinking


def test_nothing_is_left_out_below_every_rise() -> None:
    """Then the answer is the greedy one behind the whole chain."""
    problems = task().problems(2, "report")
    seeds = [problem_seed(0, problem) for problem in problems]
    found: dict[int, Outcome] = {}
    Spirit(most=-1e9).solve(pair(), problems, seeds, found.__setitem__)
    assert list(found) == [0, 1]
    for outcome, chain in zip(found.values(), alone("large"), strict=False):
        assert outcome.decision == 1.0
        assert outcome.result.answer == chain.answer
        assert [s.text for s in outcome.result.trace.steps] == [s.text for s in chain.trace.steps]


@pytest.mark.parametrize("rule", ["ari", "ftp"])
def test_greedy_systems_run_once(records: Records, rule: str) -> None:
    seeds = {unit.seed for unit in records.problems if unit.arm.split()[0] == rule}
    assert seeds == {0}
    assert {unit.seed for unit in records.problems if unit.arm == "a2r explorers=2.0"} == {0, 1}


def test_two_precisions_write_what_their_loop_writes(records: Records) -> None:
    model = pair()
    reduced = reduced_copy(model.large, "int8")
    for ids, record in zip(prompts_of(), of(records, "ari"), strict=True):
        steps = steps_of(records, record)
        text = "".join(step.text for step in steps)
        most = LIMITS["max_think_tokens"] + LIMITS["max_answer_tokens"]
        loop = AdaptiveResolution(reduced, model.large, 0.0)
        resolved = loop.generate(ids, most, model.boundary.eos_ids)
        whole = model.tokenizer.decode(resolved.tokens, skip_special_tokens=True)
        assert whole.startswith(text)
        assert whole.endswith(record.answer)
        assert record.answer.isdigit()
        assert record.small_tokens + record.large_tokens == len(resolved.tokens)
        assert record.decision == record.large_tokens / len(resolved.tokens)
        assert record.small_unused == record.large_tokens
        assert record.steps == text.count("\n\n")
        assert record.small_passes > 0


def test_skipped_blocks(records: Records) -> None:
    for record in of(records, "ftp"):
        assert record.decision is not None
        assert 0.0 < record.decision <= 1 / pair().large.config.num_hidden_layers
        assert record.small_passes == record.small_tokens == 0
        # Closing ids are in no passes of their own; what was written behind the budget is dropped.
        closed = record.large_tokens + record.large_unused - record.large_passes
        assert closed in (0, len(pair().boundary.close_ids))


def test_damaged_chains_are_named(tmp_path: Path) -> None:
    (tmp_path / "development-small.json").write_text('{"a": 1}')
    chains = DevelopmentChains(pair(), task(), task().problems(2, "development"), 2, tmp_path)
    with pytest.raises(ValueError, match=r"development-small\.json holds no chains; remove it"):
        _ = chains.small


def test_a_vote_is_by_what_the_task_takes_for_the_same_answer() -> None:
    class Doubled(type(task())):  # type: ignore[misc]
        def vote_key(self, answer: str) -> str:
            return "the same"

    system = Fractured(chains=2, depths=2)
    system.prepare(Doubled())
    problem = task().problems(1, "report")[0]
    found: dict[int, Outcome] = {}
    system.solve(pair(), [problem], [problem_seed(0, problem)], found.__setitem__)
    assert found[0].decision == 1.0


def test_a_problem_is_recorded_when_it_is_solved(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each system is interrupted in a pass within its batch: what it had solved is there."""
    batched = [arm for arm in ARMS if arm.split(":")[0] not in ("fractured", "ari", "ftp")]
    append, told, stopped = RecordFile.append, Counter[str](), set[str]()
    hooks: list[Any] = []  # while one is to be stopped: a watched model is a slow one

    def count(self: RecordFile, group: Iterable[Record]) -> None:
        kept = list(group)
        append(self, kept)
        told.update(r.arm for r in kept if isinstance(r, ProblemRecord) and r.split == "report")
        if to_stop() and not hooks:
            models = pair().small, pair().large
            hooks.extend(model.register_forward_hook(stop) for model in models)

    def to_stop() -> set[str]:
        begun = {arm for arm in told if 0 < told[arm] < PROBLEMS}
        return {arm for arm in begun - stopped if arm.split()[0] in SYSTEMS}

    def stop(*_: Any) -> None:
        if arms := to_stop():
            stopped.update(arms)
            raise KeyboardInterrupt

    def forget_hooks() -> None:
        while hooks:
            hooks.pop().remove()

    with monkeypatch.context() as patch:
        patch.setattr(RecordFile, "append", count)
        for number in range(1, 1 + len(batched)):
            with pytest.raises(KeyboardInterrupt):
                evaluated(tmp_path, policies=batched, **SIZES)
            forget_hooks()
            assert len(stopped) == number
            found = Counter(u.arm for u in read_records(tmp_path).problems if u.arm in stopped)
            assert found == Counter({arm: told[arm] for arm in stopped})
    again = read_records(evaluated(tmp_path, policies=batched, **SIZES)).problems
    assert {unit.arm for unit in again} > stopped
    for unit, record in again.items():
        whole = records.problems[unit]
        assert (record.answer, record.decision) == (whole.answer, whole.decision)


def test_they_are_reported(records: Records, tmp_path: Path) -> None:
    text = write_report([records.path.parent], tmp_path)[1].read_text()
    for rule in SYSTEMS:
        assert text.count(f"| {rule}") >= 4  # frontier, costs, systems, lengths
        assert RULES[rule].trained in text
    costs = text[text.index("What it costs") : text.index("the paper's figures")]
    unpriced = [line for line in costs.splitlines() if line.startswith(("| ari", "| ftp"))]
    assert len(unpriced) == 2
    assert all("| - | - | - | - |" in line for line in unpriced)


def test_a_run_that_was_cut_off_goes_on(records: Records, tmp_path: Path) -> None:
    lines = records.path.read_text().splitlines(keepends=True)
    ends = [place for place, line in enumerate(lines) if '"kind": "problem"' in line]
    (tmp_path / records.path.name).write_text("".join(lines[: ends[-3] + 1]))
    for kept in records.path.parent.glob("development-*.json"):
        (tmp_path / kept.name).write_text(kept.read_text())
    again = read_records(evaluated(tmp_path, policies=ARMS, **SIZES))
    for unit, record in records.problems.items():
        clockless = dataclasses.replace(again.problems[unit], seconds=record.seconds)
        assert clockless == record


def refused(model: RoutedModel, policy: str, directory: Path) -> str:
    plan = {**SIZES, "policies": [policy], "batch": 2}
    with pytest.raises(ValueError, match=policy.partition(":")[0]) as error:
        evaluate(model, task(), directory, Plan(**plan))
    assert not directory.exists()
    return str(error.value)


def test_what_a_pair_cannot_do_is_said_before_anything_runs(tmp_path: Path) -> None:
    where = tmp_path / "never"
    assert "has 8 blocks, not all can be skipped" in refused(pair(), "ftp:blocks=8", where)
    assert "explorers must lie in [1" in refused(pair(), "a2r:explorers=0", where)
    assert "a2r has no parameter 'drafts'" in refused(pair(), "a2r:drafts=2", where)
    two, _ = routed("two tokenizers", max_sequences=8)
    assert "one vocabulary" in refused(two, "laser", where)
    few = RoutedModel.from_pretrained(
        small_path(), large_path(), config=gr.RouterConfig(**LIMITS), max_sequences=4
    )
    with pytest.raises(ValueError, match="this plan needs 8"):
        evaluate(few, task(), where, Plan(**{**SIZES, "policies": ["a2r"], "batch": 2}))
