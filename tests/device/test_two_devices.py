"""Pairs whose models are on two devices: passes of both at once, and the text of one device."""

from __future__ import annotations

import copy
import queue
import threading
from typing import Any

import pytest

import glimprouter as gr
import hf_translated
from device_pairs import pair_of, written
from glimprouter.demo_pair import large_path, small_path
from glimprouter.hf import RoutedModel
from glimprouter.hf.attention.layers import kv_layout
from glimprouter.hf.engine.arena_plan import ArenaPlan
from glimprouter.hf.engine.paged import PagedEngine
from glimprouter.hf.pair.locks import exclusive, loading
from glimprouter.hf.run.overlapped import OverlappedLoop
from glimprouter.hf.run.run import Run
from hf_watch import calling, poisoned
from recorded_graphs import CountingRecorder, graphs_of

pytestmark = [
    pytest.mark.device,
    pytest.mark.needs_device,
    pytest.mark.skipif("simt:1" not in gr.build_info()["devices"], reason="needs the emulator"),
    pytest.mark.filterwarnings("error:passes of the:RuntimeWarning"),
    pytest.mark.filterwarnings("error:the models are on:RuntimeWarning"),
]

TWO = {"small": "simt:0", "large": "simt:1"}
MIXED = {"small": "cpu", "large": "simt:0"}
PATIENCE = 60.0  # seconds until a test that waits for the other model's pass gives up


def routed(
    device: Any, family: str = "qwen3", models: tuple[Any, Any] | None = None, **options: Any
) -> RoutedModel:
    pair = pair_of(family)
    config = {"temperature": 0.8, "repetition_guard": False, "max_step_tokens": 6}
    config |= {"max_think_tokens": 24, "max_answer_tokens": 6}
    config |= options.pop("config", {})
    return RoutedModel(
        *(models or (pair.small, pair.large)),
        pair.tokenizer,
        gr.RouterConfig(threshold=pair.threshold, **config),
        device=device,
        **{"engine": "paged", "drafts": 0, "execution": "eager", **options},  # type: ignore[arg-type]
    )


def own_models(family: str = "qwen3") -> tuple[Any, Any]:
    """Copies, which hooks may be put on."""
    pair = pair_of(family)
    return copy.deepcopy(pair.small), copy.deepcopy(pair.large)


class Meetings:
    """The passes of a run that flew: in each, where the small model had anything to do, its next
    pass is held until it and the large model's have met."""

    def __init__(self, run: Run, small: Any, large: Any) -> None:
        loop = run._loop
        assert isinstance(loop, OverlappedLoop)
        self.flights = self.met = 0
        self._here = threading.Barrier(2)
        self._expected: queue.Queue[bool] = queue.Queue()  # for the thread of the large model
        self._meets = False  # the small model's next pass
        self._first = False
        own_flight, own_beside = loop._go_on_beside, loop._beside

        def flight(flying: Any) -> None:
            self._first = True
            self.flights += 1
            own_flight(flying)

        def beside() -> list[Any]:
            passes = own_beside()
            if self._first:
                self._first, self._meets = False, bool(passes)
                self._expected.put(bool(passes))
            return passes

        loop._computed._beside = lambda: flight  # type: ignore[attr-defined]
        loop._beside = beside  # type: ignore[method-assign]
        small.model.layers[0].register_forward_pre_hook(self._small)
        large.model.layers[0].register_forward_pre_hook(self._large)

    def _small(self, *_: Any) -> None:
        if self._meets:
            self._meets = False
            self._here.wait(PATIENCE)
            self.met += 1

    def _large(self, *_: Any) -> None:
        if self._expected.get(timeout=PATIENCE):
            self._here.wait(PATIENCE)


@pytest.mark.parametrize(
    ("device", "family", "drafts"),
    [(TWO, "qwen3", 0), (TWO, "gemma3", 4), (MIXED, "qwen3", 4)],
)
def test_the_text_of_one_device(device: dict[str, str], family: str, drafts: int) -> None:
    prompts = pair_of(family).prompts
    want = routed("simt:0", family, drafts=drafts).generate(prompts, seeds=3)
    model = routed(device, family, drafts=drafts)
    assert model.device == device
    got = model.generate(prompts, seeds=3)
    assert written(got) == written(want)
    assert {step.model for result in got for step in result.trace.steps} == {"small", "large"}


@pytest.mark.parametrize("drafts", [0, 4])
def test_passes_of_both_models_are_under_way_at_once(drafts: int) -> None:
    """Every pass of the large model meets one of the small model that had something to do."""
    prompts = pair_of("qwen3").prompts
    want = written(routed("simt:0", drafts=drafts).generate(prompts))
    models = own_models()
    run = routed(TWO, models=models, drafts=drafts).stream(prompts)
    meetings = Meetings(run, *models)
    assert written(finished(run)) == want
    assert meetings.met > 0  # how often follows the clock
    assert meetings.flights >= meetings.met


def finished(run: Run) -> list[gr.hf.Result]:
    """The results of a run, in order."""
    results = {event.sequence: event.result for event in run if event.result is not None}
    return [results[index] for index in sorted(results)]


class Breaks(Exception):
    """Of a hook."""


@pytest.mark.parametrize(
    ("name", "error", "drafts"),
    [
        ("small", Breaks, 0),
        ("large", Breaks, 4),
        ("small", KeyboardInterrupt, 4),
        ("large", KeyboardInterrupt, 0),
    ],
)
def test_a_pass_that_breaks_off_loses_nothing(name: str, error: Any, drafts: int) -> None:
    """It is raised once, when no pass is under way any more, and the run goes on from there."""
    prompts = pair_of("qwen3").prompts
    want = written(routed("simt:0", drafts=drafts).generate(prompts))
    models = own_models()
    run = routed(TWO, models=models, drafts=drafts).stream(prompts)
    engine: Any = run._sequences.engine
    own, inside = engine._logits, threading.Event()

    def watched(*arguments: Any) -> Any:
        inside.set()
        try:
            return own(*arguments)
        finally:
            inside.clear()

    engine._logits = watched
    raised, events = 0, []

    def fail(call: int) -> None:
        if call in (3, 11, 12, 20):
            raise error

    with calling(models[name == "large"], fail):
        while True:
            try:
                events += (step := run.step())
                if not step:
                    break
            except error:
                raised += 1
                assert not inside.is_set()
                engine._cache.check_invariants()
    results = {event.sequence: event.result for event in events if event.result is not None}
    assert written([results[index] for index in range(len(prompts))]) == want
    assert raised == 4


@pytest.mark.parametrize("name", ["small", "large"])
def test_invalid_logits_end_their_sequence_alone(name: str) -> None:
    prompts = pair_of("qwen3").prompts
    want = written(routed("simt:0").generate(prompts))
    models = own_models()
    model = routed(TWO, models=models, on_invalid="end")
    with poisoned(models[name == "large"], 2, len(prompts[2]) + 9, float("nan")):
        got = model.generate(prompts)
    assert got[2].trace.end_reason == "error"
    del got[2], want[2]
    assert written(got) == want
    model = routed(TWO, models=models)
    with (
        poisoned(models[name == "large"], 2, len(prompts[2]) + 9, float("nan")),
        pytest.raises(RuntimeError, match=f"sequence 2: the {name} model gave logits"),
    ):
        model.generate(prompts)


@pytest.mark.parametrize(("scarce", "drafts"), [("small", 0), ("large", 4), ("both", 4)])
@pytest.mark.usefixtures("pages_of_16")
def test_each_device_has_memory_of_its_own(scarce: str, drafts: int) -> None:
    """Sequences are preempted when either runs short; the text is as with plenty."""
    prompts = [prompt[:12] for prompt in pair_of("qwen3").prompts]
    config = {"max_think_tokens": 56}
    want = written(routed("simt:0", drafts=drafts, config=config).generate(prompts))
    layouts = [kv_layout(model) for model in (pair_of("qwen3").small, pair_of("qwen3").large)]
    longest = [12 + 56 + 6 + 8] * 2  # the delimiter that closes thinking included
    plans = {"small": ArenaPlan(layouts, [0]), "large": ArenaPlan(layouts, [1])}
    least = {name: (plan.sectors(longest) + 2) * plan.sector_bytes for name, plan in plans.items()}
    memory = {name: own if scarce in (name, "both") else 1 << 24 for name, own in least.items()}
    model = routed(TWO, drafts=drafts, kv_memory_bytes=memory, config=config)
    preempted = 0
    run = model.stream(prompts)
    own = run._sequences.preempt_youngest

    def counted(*spared: Any) -> None:
        nonlocal preempted
        preempted += 1
        assert not run._loop._computed.flying  # type: ignore[attr-defined]
        own(*spared)

    run._sequences.preempt_youngest = counted  # type: ignore[method-assign]
    assert written(finished(run)) == want
    assert preempted > 0
    engine = run._sequences.engine
    assert isinstance(engine, PagedEngine)
    engine._cache.check_invariants()
    assert [engine._pools[name].owned(i) for i, name in enumerate(("small", "large"))] == [0, 0]
    name = scarce.replace("both", "small")
    too_little = {**memory, name: 2 * plans[name].sector_bytes}
    with pytest.raises(ValueError, match="cannot hold the longest sequence"):
        routed(TWO, kv_memory_bytes=too_little, config=config).generate(prompts)


def test_forked_rewound_cancelled_and_saved_between_events() -> None:
    prompts = pair_of("qwen3").prompts
    model = routed(TWO)
    want = written(model.generate(prompts))
    run = model.stream(prompts)
    for _ in range(9):
        run.step()
    twin = run.fork(0, substream=0)
    saved = run.save(1)
    run.rewind(2, 2)
    assert run.cancel(3).trace.end_reason == "cancelled"
    results = {event.sequence: event.result for event in run if event.result is not None}
    resumed = [event.result for event in model.resume([saved]) if event.result is not None]
    assert written([results[i] for i in (0, 1, 2, 4, twin)]) == [want[i] for i in (0, 1, 2, 4, 0)]
    assert written(resumed) == [want[1]]
    on_one = [e.result for e in routed("simt:0").resume([saved]) if e.result is not None]
    assert written(on_one) == [want[1]]


def test_hooks_of_a_flying_pass_may_hold_the_models_and_must_not_load() -> None:
    models = own_models()
    model = routed(TWO, models=models)
    outcomes = set()

    def hook(*_: Any) -> None:
        with exclusive(*models):
            outcomes.add("held")
        with pytest.raises(RuntimeError, match="cannot be loaded inside"), loading():
            raise AssertionError
        outcomes.add("refused")

    handle = models[1].register_forward_pre_hook(hook)
    model.generate(pair_of("qwen3").prompts[:2])
    handle.remove()
    assert outcomes == {"held", "refused"}


def test_replays_fly_and_what_is_recorded_runs_alone(recorders: list[CountingRecorder]) -> None:
    prompts = pair_of("qwen3").prompts[1:4]
    want = written(routed("simt:0").generate(prompts))
    models = own_models()
    model = routed(TWO, models=models, execution="graphs")
    here = threading.get_ident()
    threads: set[int] = set()
    models[1].register_forward_pre_hook(lambda *_: threads.add(threading.get_ident()))
    for _ in range(3):
        assert written(model.generate(prompts)) == want
    assert threads == {here} | (threads - {here})
    assert len(recorders) == 2
    assert all(own.replays > 5 for own in recorders)
    for graphs in graphs_of(model).values():
        assert graphs.refused is None
        assert graphs.captured


def test_a_mixed_pair_replays_on_the_device_only(recorders: list[CountingRecorder]) -> None:
    prompts = pair_of("qwen3").prompts[1:4]
    want = written(routed("simt:0").generate(prompts))
    model = routed(MIXED, execution="auto")
    assert model.execution == "graphs"
    for _ in range(2):
        assert written(model.generate(prompts)) == want
    assert set(graphs_of(model)) == {"large"}
    assert [own.replays > 5 for own in recorders] == [True]


def test_other_vocabularies() -> None:
    """Texts are turned into the other model's tokens while its pass over other rows flies."""
    kinds = "gpt2", "llama2"
    options = {"engine": "paged", "max_sequences": 8}
    model = hf_translated.routed(*kinds, **options)
    prompts = hf_translated.prompts(*kinds)
    want = written(model.generate(prompts))
    two = RoutedModel(
        model.small,
        model.large,
        model.tokenizer,
        model.config,
        large_tokenizer=model.large_tokenizer,
        device=TWO,
        drafts=0,
        **options,  # type: ignore[arg-type]
    )
    assert isinstance(two.stream(prompts)._loop, OverlappedLoop)
    assert written(two.generate(prompts)) == want


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": {"small": "simt:0"}}, 'device for each model is {"small": ..., "large": ...}'),
        ({"device": {**TWO, "large": "simt:7"}}, "device must be one of .*got 'simt:7'"),
        ({"device": {**TWO, "large": "xpu:0"}}, "device must be one of .*got 'xpu:0'"),
        ({"device": MIXED, "execution": "compiled"}, "compiles for the CPU or for devices"),
        ({"device": "simt:0", "kv_memory_bytes": {"small": 1 << 20}}, "needs pages on two devices"),
        ({"kv_memory_bytes": {"medium": 1 << 20}}, "kv_memory_bytes for each model is"),
        ({"kv_memory_bytes": {"large": 0}}, r"kv_memory_bytes\[\"large\"\] must"),
        ({"execution": "graphs", "engine": "gather"}, "runs on 'gather' on simt:0, simt:1"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routed(**{"device": TWO, **options})


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("qwen3", {"engine": "gather"}, "the engine 'gather' computes one pass at a time"),
        ("qwen3", {"engine": "native"}, "the engine 'native' computes one pass at a time"),
        ("hybrid", {}, "the large model keeps states"),
        ("qwen3", {"models": "shared"}, "the models share modules"),
    ],
)
def test_passes_in_turn_say_why(family: str, options: dict[str, Any], reason: str) -> None:
    """And each model has its memory on its device all the same."""
    if "models" in options:
        options = {"models": (own_models()[0],) * 2}
    one = {key: value for key, value in options.items() if value != "native"}
    want = written(routed("simt:0", family, **one).generate(pair_of(family).prompts[:2]))
    with pytest.warns(RuntimeWarning, match=f"run one after the other: {reason}") as caught:
        model = routed(TWO, family, **options)
    assert [w.filename for w in caught if "one after" in str(w.message)] == [__file__]
    assert written(model.generate(pair_of(family).prompts[:2])) == want
    assert not isinstance(model.stream([])._loop, OverlappedLoop)


def test_loaded_to_two_devices() -> None:
    model = RoutedModel.from_pretrained(small_path(), large_path(), device=TWO)
    assert model.device == TWO
    assert model.engine == "paged"
    with pytest.raises(ValueError, match="needs a device for both"):
        RoutedModel.from_pretrained(small_path(), large_path(), device={**TWO, "large": None})
