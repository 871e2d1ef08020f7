"""The product end to end: a `RoutedModel` of two sizes beside the large model alone.

Contenders, all through `RoutedModel.generate`: the large model alone, the same with drafts (which
is speculative decoding), routed, and routed with drafts; for several numbers of sequences at a
time, shares of large steps and agreements of the models. Two of them also at their best, with what
is off by default until it was measured: fused layers, and attention that copies ahead. Weights are
random, texts are those of a table (`token_chain.py`), agreement is what it was set to
(`agreeing_pair.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from agreeing_pair import SAMPLING, AgreeingPair
from budget import Budget
from captures import counted, rows_of
from clock import Clock
from models import build
from token_chain import CYCLE, STEPS, TokenChain

import glimprouter as gr
from glimprouter import kv
from glimprouter.calibration.shares import threshold_for_share
from glimprouter.hf import RoutedModel
from glimprouter.hf.sequence.events import Result

ALONE, ALONE_DRAFTS = "large alone", "large alone, drafts"
ROUTED, ROUTED_DRAFTS = "routed", "routed, drafts"
# With fused layers and staged loads of attention.
BEST_ALONE, BEST_DRAFTS = "best: large alone", "best: routed, drafts"
BEST = (BEST_ALONE, BEST_DRAFTS)
DRAFTS: dict[str, Any] = {
    ALONE: 0,
    ALONE_DRAFTS: "auto",
    ROUTED: 0,
    ROUTED_DRAFTS: "auto",
    BEST_ALONE: 0,
    BEST_DRAFTS: "auto",
}
AGREEMENTS = (0.75, 0.6)
LARGE_SHARES = (0.15, 0.25)
# Speed over the large model alone by sequences, of the first agreement and share; and over its
# speculative decoding, everywhere.
GOALS = {1: 3.5, 16: 2.2, 64: 2.0}
GOAL_OVER_SPECULATIVE = 1.3
RATIOS = ("over_large_alone", "over_speculative", "over_best_alone")
PROMPT = 32  # tokens: what is measured is writing
TOKENS = CYCLE // 4  # of a sequence: four sequences pass all of the cycle
SEED = 7
_PLACES = 2048  # of texts, on which the agreement is set
_LEAST_ROUTED = 4  # sequences, one after another if need be: all of the cycle
_SLOWER = 1.3  # than the slowest of its kind so far, a run is not expected to be
_WARM_UP_TOKENS, _WARM_UP_ROUTED = 5, 28
_WARM_UP_THRESHOLD = 0.5  # nats

Keep = Callable[[dict[str, Any]], None]


@dataclass
class Measured:
    """A contender's run over its sequences.

    Attributes:
        seconds: Of all of them.
        results: What was written.
    """

    seconds: float
    results: list[Result]

    @property
    def texts(self) -> list[list[int]]:
        """Generated ids."""
        return [result.token_ids for result in self.results]

    def milliseconds(self) -> float:
        """Of the clock on the wall, a token."""
        return 1e3 * self.seconds / sum(map(len, self.texts))

    def counts(self) -> dict[str, Any]:
        """Shares of the large model, passes and drafts, all sequences together."""
        steps = [step for result in self.results for step in result.trace.steps]
        large = [step for step in steps if step.model == "large"]
        found: dict[str, Any] = {
            "tokens": sum(map(len, self.texts)),
            "large_share_of_steps": len(large) / len(steps),
            "large_share_of_tokens": sum(s.num_tokens for s in large)
            / sum(s.num_tokens for s in steps),
            # A pass over several sequences counts for each of them.
            "passes_of_sequences": {
                name: sum(result.counts[name].passes for result in self.results)
                for name in ("small", "large")
            },
        }
        for name in ("drafted", "compared", "accepted"):
            found[name] = sum(getattr(result.counts["small"], name) for result in self.results)
        found["drafts_held"] = found["accepted"] / found["compared"] if found["compared"] else None
        return found


@dataclass
class Product:
    """Both pairs of options, warm, and what was measured of the large model alone.

    Attributes:
        clock: Of the device.
        chain: The table that texts follow.
        routed: A `RoutedModel` by its option `drafts`, and whether it is one at its best.
        pair: Whose agreement is set.
        budget: Of all measurements.
        keep: Told of the report whenever something was added.
        report: What comes of it.
        alone: Runs of the large model alone, by sequences.
        slowest: Seconds of the slowest run so far, by sequences.
        warm_up_seconds: Of the contenders by default: those at their best take about as long.
    """

    clock: Clock
    chain: TokenChain
    routed: dict[tuple[Any, bool], RoutedModel]
    pair: AgreeingPair
    budget: Budget
    keep: Keep
    report: dict[str, Any]
    alone: dict[int, Measured] = field(default_factory=dict)
    slowest: dict[int, float] = field(default_factory=dict)
    warm_up_seconds: float = 0.0

    def write(self, contender: str, rows: int, prompts: Sequence[list[int]], **config: Any) -> Any:
        """Some sequences, so many at a time."""
        if contender in (ALONE, ALONE_DRAFTS, BEST_ALONE):
            config["route"] = "large"
        model = self.routed[DRAFTS[contender], contender in BEST]
        before = kv.set_attention_loads("staged" if contender in BEST else "direct")
        try:
            self.clock.synchronize()
            start = time.perf_counter()
            results: list[Result] = []
            for first in range(0, len(prompts), rows):
                results += model.generate(prompts[first : first + rows], seeds=SEED, **config)
            self.clock.synchronize()
            return Measured(time.perf_counter() - start, results)
        finally:
            kv.set_attention_loads(before)

    def measure(self, contender: str, rows: int, **config: Any) -> Measured | str:
        """A run that is timed; why there is none where it does not fit into the budget."""
        expected = _SLOWER * self.slowest.get(rows, max(self.slowest.values(), default=0.0))
        if refusal := self.budget.refusal(expected):
            return refusal
        routed = contender in (ROUTED, ROUTED_DRAFTS, BEST_DRAFTS)
        prompts = self.chain.prompts(max(rows, _LEAST_ROUTED if routed else 1), PROMPT)
        measured = self.write(contender, rows, prompts, **config)
        self.slowest[rows] = max(measured.seconds, self.slowest.get(rows, 0.0))
        return measured

    def note(self, row: dict[str, Any]) -> None:
        """One row more."""
        self.report["rows"].append(row)
        self.keep(self.report)

    def add(
        self, contender: str, rows: int, settings: dict[str, Any], **config: Any
    ) -> Measured | None:
        """Measures a contender and notes what came of it, beside the large model alone."""
        row = {"contender": contender, "sequences": rows, **settings}
        measured = self.measure(contender, rows, **config)
        if isinstance(measured, str):
            self.note({**row, "left_out": measured})
            return None
        row |= {"ms_a_token": measured.milliseconds(), "seconds": measured.seconds}
        if contender == ALONE:
            self.alone[rows] = measured
        elif rows in self.alone:
            row["over_large_alone"] = self.alone[rows].milliseconds() / measured.milliseconds()
        if contender in (ALONE_DRAFTS, BEST_ALONE) and rows in self.alone:
            row["same_tokens"] = measured.texts == self.alone[rows].texts
        self.note(row | measured.counts())
        return measured

    def routed_beside(self, rows: int, speculative: Measured | None, settings: Any) -> None:
        """Routed without drafts and with them, beside speculative decoding, and the goals."""
        plain = self.add(ROUTED, rows, settings, threshold=settings["threshold"])
        drafts = self.add(ROUTED_DRAFTS, rows, settings, threshold=settings["threshold"])
        if drafts is None:
            return
        row = self.report["rows"][-1]
        if plain is not None:
            row["same_tokens"] = drafts.texts == plain.texts
        if speculative is not None:
            ratio = speculative.milliseconds() / drafts.milliseconds()
            row |= {"over_speculative": ratio, "goal_over_speculative": GOAL_OVER_SPECULATIVE}
        if (settings["agreement"], settings["large_share"]) == (AGREEMENTS[0], LARGE_SHARES[0]):
            row["goal_over_large_alone"] = GOALS.get(rows)
        self.judge(row)

    def best(self, rows: int, settings: Any) -> None:
        """Routed with drafts beside the large model alone, both at their best, and the goal."""
        alone = self.add(BEST_ALONE, rows, {})
        drafts = self.add(BEST_DRAFTS, rows, settings, threshold=settings["threshold"])
        if alone is None or drafts is None:
            return
        row = self.report["rows"][-1]
        row["over_best_alone"] = alone.milliseconds() / drafts.milliseconds()
        row["goal_over_best_alone"] = GOALS.get(rows)
        self.judge(row)

    def judge(self, row: dict[str, Any]) -> None:
        """Whether a row meets all goals that it has."""
        aims = [(row.get(name), row.get(f"goal_{name}")) for name in RATIOS]
        known = [own >= goal for own, goal in aims if own is not None and goal is not None]
        row["met"] = all(known) if known else None
        self.keep(self.report)

    def threshold_of(self, rows: int) -> Callable[[float], float]:
        """For a share of large steps, the threshold by a recorded run that never routes."""
        prompts = self.chain.prompts(max(rows, _LEAST_ROUTED), PROMPT)
        recorded = self.write(ROUTED, rows, prompts, threshold=float("inf"))
        steps = [step for result in recorded.results for step in result.trace.steps]
        entropies = np.sort(np.array([step.entropy for step in steps], dtype=np.float32))
        return lambda share: threshold_for_share(entropies, share, ">")

    def agree(self, wanted: float, rows: int) -> Callable[[float], float]:
        """Sets an agreement by the large model's texts of the run of so many sequences."""
        texts = self.alone[rows].texts
        prompts = self.chain.prompts(len(texts), PROMPT)
        before = [
            token
            for prompt, text in zip(prompts, texts, strict=True)
            for token in (prompt[-1], *text[:-1])
        ]
        before = before[:: 1 + len(before) // _PLACES]
        reached = self.pair.calibrate(wanted, before, SEED)
        self.report["agreements"].append(
            {
                "wanted": wanted,
                "measured": reached,
                "places": len(before),
                "mistaken": self.pair.mistaken,
            }
        )
        return self.threshold_of(rows)


def _warm_up(product: Product, sizes: Sequence[int], contenders: Sequence[str]) -> None:
    """Captures what is captured, and lets libraries make their choices."""
    most = max(sizes)
    prompts = product.chain.prompts(most, PROMPT)
    for contender in contenders:
        routes = ("large",) if contender == BEST_ALONE else ("small", "large")
        # The longest first: a run that needs more pages makes those and the graphs anew.
        product.write(contender, most, prompts, route=routes[0])
        for rows in (1 << power for power in range(most.bit_length())):
            for route in routes:
                few = {"route": route, "max_think_tokens": _WARM_UP_TOKENS}
                product.write(contender, rows, prompts[:rows], **few)
        for rows in sizes if len(routes) > 1 else ():
            few = {"threshold": _WARM_UP_THRESHOLD, "max_think_tokens": _WARM_UP_ROUTED}
            product.write(contender, rows, prompts[:rows], **few)


def _prepare(
    clock: Clock, names: tuple[str, str], most: int, budget: Budget, keep: Keep
) -> Product:
    small, large = (build(name, clock.device) for name in names)
    chain = TokenChain(small.config.vocab_size)
    tokenizer = chain.tokenizer()
    limits = {"max_think_tokens": TOKENS, "max_answer_tokens": 0, "repetition_guard": False}
    config = gr.RouterConfig(**SAMPLING, **limits)
    routed = {  # before the pair agrees: see there
        (drafts, best): RoutedModel(
            small,
            large,
            tokenizer,
            config,
            thinking=None,
            eos_token_ids=[],
            engine="paged",
            max_sequences=most,
            drafts=drafts,
            fused_layers=True if best else "auto",
        )
        for best in (False, True)
        for drafts in (0, "auto")
    }
    report = {
        "small": names[0],
        "large": names[1],
        "sampling": SAMPLING,
        "prompt_tokens": PROMPT,
        "tokens_of_a_sequence": TOKENS,
        "execution": routed[0, False].execution,
        "steps": {
            "mean_tokens": CYCLE / len(STEPS),
            "median_tokens": float(np.median([length for length, _ in STEPS])),
        },
        "agreement": "share of the places in texts of the large model where both models draw the"
        " same with the same random numbers; set by the share of tokens (mistaken) behind which the"
        " small model's first choice is another, found by bisection on texts of the large model",
        "agreements": [],
        "rows": [],
    }
    return Product(clock, chain, routed, AgreeingPair(small, large, chain), budget, keep, report)


def _warm_up_by_default(product: Product, names: tuple[str, str], sizes: Sequence[int]) -> None:
    """And how long the captures take."""
    model = product.routed[0, False]
    models = {"small": model.small, "large": model.large}
    start = time.perf_counter()
    with counted(models) as found:
        if product.clock.is_cuda:
            _warm_up(product, sizes, (ROUTED, ROUTED_DRAFTS))
    product.warm_up_seconds = time.perf_counter() - start
    shapes = dict(zip(models, names, strict=True))
    product.report["captures"] = rows_of(found, shapes, product.clock.name)


def _at_their_best(product: Product, sizes: Sequence[int], settings: Any) -> None:
    """Where there is time left to warm up, too."""
    expected = product.warm_up_seconds + _SLOWER * max(product.slowest.values(), default=0.0)
    if refusal := product.budget.refusal(expected):
        product.note({"contender": BEST_DRAFTS, **settings, "left_out": refusal})
        return
    if product.clock.is_cuda:
        _warm_up(product, sizes, BEST)
    for rows in sizes:
        product.best(rows, settings)


def run(
    clock: Clock,
    names: tuple[str, str],
    sizes: Sequence[int],
    budget: Budget,
    keep: Keep,
) -> dict[str, Any]:
    """Milliseconds a token of each contender, and ratios.

    Args:
        clock: Of the device.
        names: Shapes of the small and the large model.
        sizes: Sequences at a time, those that matter most first.
        budget: What does not fit any more is left out, and said so.
        keep: Told of the report whenever something was added to it.
    """
    most = max(sizes)
    product = _prepare(clock, names, most, budget, keep)
    _warm_up_by_default(product, names, sizes)
    for rows in sorted(sizes, reverse=True):
        product.add(ALONE, rows, {})
    for agreement in AGREEMENTS:
        refusal = budget.refusal(product.slowest.get(most, 0.0))
        if refusal is not None or most not in product.alone:
            product.note({"agreement": agreement, "left_out": refusal or f"no {ALONE}"})
            continue
        threshold_of = product.agree(agreement, most)
        speculative = {
            rows: product.add(ALONE_DRAFTS, rows, {"agreement": agreement}) for rows in sizes
        }
        for share in LARGE_SHARES:
            threshold = threshold_of(share)
            settings = {"agreement": agreement, "large_share": share, "threshold": threshold}
            for rows in sizes:
                product.routed_beside(rows, speculative[rows], settings)
            if (agreement, share) == (AGREEMENTS[0], LARGE_SHARES[0]):
                _at_their_best(product, sizes, settings)
    if clock.is_cuda:
        product.report["peak_memory_bytes"] = torch.cuda.max_memory_allocated(clock.device)
    return product.report
