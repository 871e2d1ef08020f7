"""What `test_bad_input.py` works on: a case, routers with rows in every phase, a tiny pair."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import glimprouter as gr
from glimprouter.demo_pair import small_path
from glimprouter.hf import RoutedModel

torch.set_num_threads(1)

VOCABULARY = 12
NEWLINE, BLANK_LINE, THINK_END, EOS = 8, 9, 10, 11
CONTEXT = 96  # positions of the tiny pair
OTHER_DELIMITER = gr.StepBoundary([b"a", b"#"], "#")


def make_boundary(letters: bytes = b"abcdefgh") -> gr.StepBoundary:
    return gr.StepBoundary(
        [*(bytes([letter]) for letter in letters), b"\n", b"\n\n", None, None],
        think_end_ids=[THINK_END],
        eos_ids=[EOS],
        close_ids=[NEWLINE, THINK_END, BLANK_LINE],
    )


def logits_for(*tokens: int, width: int = VOCABULARY) -> NDArray[np.float32]:
    """A row for each token, which is by far the likeliest."""
    rows = np.zeros((len(tokens), width), np.float32)
    rows[np.arange(len(tokens)), tokens] = 20.0
    return rows


class World:
    """Everything that a bad call may not change.

    Attributes:
        router: Room for more rows; the rows below are open, ``closed`` was.
        full: A router of one row, which is in use.
        small, large, manual, done, closed: Rows of ``router``: waiting for the small model (in a
            step, with generated tokens), for the large model, for a decision; ended; closed.
        outputs: For 4 rows, filled with a pattern.
        logits: One row for ``small``.
        path: Where a trace may be written.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "trace.jsonl"
        config = gr.RouterConfig(temperature=0.0, max_answer_tokens=0)
        self.router = gr.StepRouter(make_boundary(), config, max_sequences=8)
        self.full = gr.StepRouter(make_boundary(), config, max_sequences=1)
        self.full.open()
        self.small = self.router.open()
        self.large = self.router.open(first_steps_large=1)
        self.manual = self.router.open(route="manual")
        self.done = self.router.open(max_think_tokens=1)
        self.closed = self.router.open()
        self.router.close(self.closed)
        self.outputs = self.router.outputs(4, gr.OutputField.ALL, [0, 1])
        rows = [self.small, self.manual, self.done]
        self.router.step("small", logits_for(0, 1, 2), rows, self.outputs)
        assert [self.router.phase(row) for row in (*rows, self.large)] == [
            gr.Phase.SMALL_STEP,
            gr.Phase.AWAIT_DECISION,
            gr.Phase.DONE,
            gr.Phase.LARGE_STEP,
        ]
        for values in self._fields().values():
            values.view(np.uint8)[...] = 0x5A
        self.logits = logits_for(3)

    def _fields(self) -> dict[str, NDArray[Any]]:
        named = vars(self.outputs).items()
        return {name: value for name, value in named if isinstance(value, np.ndarray)}

    def snapshot(self) -> dict[str, Any]:
        """All state of both routers, and what the outputs hold."""
        state: dict[str, Any] = {name: value.tobytes() for name, value in self._fields().items()}
        for name, router in (("router", self.router), ("full", self.full)):
            for model in ("small", "large"):
                state[f"{name} pending {model}"] = router.pending(model).tolist()
            state[f"{name} rows"] = {row: router.save(row) for row in router.rows.tolist()}
        return state

    def go_on(self) -> None:
        """Every row that can go on does, as if nothing had happened."""
        self.router.step("small", self.logits, [self.small], self.outputs)
        assert (self.outputs.token[0], self.outputs.status[0]) == (3, gr.Status.OK)
        self.router.step("large", logits_for(4), [self.large], self.outputs)
        assert self.outputs.token[0] == 4
        self.router.decide("small", [self.manual], self.outputs)
        assert self.outputs.token[0] == 1

    def step(self, **changes: Any) -> None:
        """A right call of ``step`` but for the changes."""
        call = {
            "model": "small",
            "logits": self.logits,
            "rows": [self.small],
            "outputs": self.outputs,
            **changes,
        }
        self.router.step(*call.values())

    def in_another_thread(self, call: Callable[[], object]) -> None:
        """Raises here what the call raises there."""
        raised: list[BaseException] = []

        def body() -> None:
            try:
                call()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]

    def read_trace(self, content: bytes) -> gr.Trace:
        """Reads a trace file of this content."""
        self.path.write_bytes(content)
        return gr.Trace.from_jsonl(self.path)

    def trace_bytes(self) -> bytes:
        """The content of a good trace file."""
        step = gr.TraceStep(0, "small", 0.5, 1.0, "a\n\n", 2, 0.1, "delimiter")
        gr.Trace(prompt="é", steps=[step]).to_jsonl(self.path)
        return self.path.read_bytes()


@cache
def tokenizer() -> Any:
    """That of the embedded pair: 302 ids."""
    return AutoTokenizer.from_pretrained(small_path(), local_files_only=True)


def changed_tokenizer(*, template: bool = True, extra: str | None = None) -> Any:
    """A copy without chat template, or with one more token."""
    copy = AutoTokenizer.from_pretrained(small_path(), local_files_only=True)
    if not template:
        copy.chat_template = None
    if extra is not None:
        copy.add_tokens([extra])
    return copy


def tokenizer_without_newline() -> Any:
    """Words only: it cannot write the delimiter."""
    vocabulary = {"<unk>": 0, "a": 1, "b": 2}
    backend = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def tokenizer_of_words() -> Any:
    """Whole words: what it does not know is lost."""
    vocabulary = {"<unk>": 0, "a": 1, "\n\n": 2}
    backend = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@cache
def tiny_model(layers: int = 1, vocabulary: int = 302) -> Any:
    """Qwen3 with random weights and a short context; never change it."""
    torch.manual_seed(layers)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        **{f"{name}_token_id": None for name in ("bos", "eos", "pad")},
    )
    return Qwen3ForCausalLM(config).eval()


def model_with_layers(kind: str) -> Any:
    """As a model whose layers keep another kind of state."""
    model = Qwen3ForCausalLM(tiny_model().config.__class__(**tiny_model().config.to_dict()))
    model.config.layer_types = [kind]
    return model.eval()


def routed(**changes: Any) -> RoutedModel:
    """The tiny pair but for the changes."""
    arguments: dict[str, Any] = {
        "small": tiny_model(1),
        "large": tiny_model(2),
        "tokenizer": tokenizer(),
        "config": gr.RouterConfig(temperature=0.0, max_think_tokens=6, max_answer_tokens=4),
        **changes,
    }
    return RoutedModel(**arguments)


@cache
def shared_pair() -> tuple[RoutedModel, list[int]]:
    """The pair that bad calls are made to, and what it writes to ``"Hi"`` before any of them."""
    model = routed()
    return model, model.generate(["Hi"])[0].token_ids


class Case(NamedTuple):
    """A call, and the exception that it must raise: what was wrong, expected, and to be done."""

    call: Callable[[World], object]
    error: type[BaseException]
    message: str
