"""Pairs of tiny models that the tests of the Hugging Face engine share; all seeded, all fp32.

The random ones have a bias on their output ids, so that delimiters come often and the ids that end
thinking or the sequence never win.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import glimprouter as gr
from glimprouter import demo_pair
from glimprouter.demo_pair import task
from glimprouter.hf import RoutedModel
from glimprouter.hf.state.form import keeps_states
from hf_watch import TRIAL
from shared_trials import share

torch.set_num_threads(1)  # the models are so small that a second thread only waits

SPECIAL = ("<|im_end|>", "<|endoftext|>", "<|im_start|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# The engine under test: conftest.py runs every test of the engines once with each.
ENGINE: ContextVar[Any] = ContextVar("engine", default="gather")
WINDOW = 12  # of the sliding layers; far below the tested lengths
FAMILIES = ("qwen3", "llama", "gemma3")
# Of "gemma2", which needs attention="eager": low enough that the scores and logits feel them.
SOFTCAPS = {
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 20.0,
    "query_pre_attn_scalar": 16,
}


# Of "hybrid": gated delta nets between the layers of attention.
HYBRID = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level BPE with every byte, three merged newlines and the markers of thinking."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline, blank_line = "Ċ", "ĊĊ"
    merges = [(newline, newline), (".", blank_line), ("t", "h")]
    words = [*alphabet, *(first + second for first, second in merges)]
    model = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    backend.add_tokens([AddedToken(text) for text in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=SPECIAL[0], pad_token=SPECIAL[1]
    )
    tokenizer.chat_template = chat_template
    return tokenizer


TOKENIZER = byte_tokenizer()
VOCABULARY = len(TOKENIZER)
BLANK_LINE, DOT_BLANK_LINE = TOKENIZER.convert_tokens_to_ids(["ĊĊ", ".ĊĊ"])
NEWLINE = TOKENIZER.convert_tokens_to_ids("Ċ")
EOS, THINK, END_THINK = TOKENIZER.convert_tokens_to_ids([SPECIAL[0], "<think>", "</think>"])


def output_bias(seed: int) -> torch.Tensor:
    """Plain text mostly, delimiters often; special ids never."""
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(VOCABULARY, generator=generator)
    for token in range(VOCABULARY):
        if not TOKENIZER.decode([token]).isascii():
            bias[token] -= 3.0
    bias[[BLANK_LINE, DOT_BLANK_LINE, NEWLINE]] += torch.tensor([3.0, 4.5, 1.5])
    bias[VOCABULARY - len(SPECIAL) - 2 :] = -100.0
    return bias


@cache
def random_model(family: str, layers: int, seed: int, attention: str = "sdpa") -> Any:
    """A model with random weights, decisive logits and steps of a few tokens; never change it."""
    shared = {
        "vocab_size": VOCABULARY + 5,  # wider than the tokenizer, as padded checkpoints are
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "attn_implementation": attention,
        **{f"{name}_token_id": None for name in ("bos", "eos", "pad")},
    }
    torch.manual_seed(seed)
    if family == "qwen3":
        model: Any = Qwen3ForCausalLM(Qwen3Config(**shared))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shared))
    elif family == "hybrid":
        types = ["linear_attention", "full_attention"] * layers
        model = Qwen3_5ForCausalLM(
            Qwen3_5TextConfig(**shared, **HYBRID, layer_types=types[:layers])
        )
    else:
        types = ["sliding_attention", "full_attention"] * layers
        shared |= {"layer_types": types[:layers], "sliding_window": WINDOW}
        if family == "gemma2":
            model = Gemma2ForCausalLM(Gemma2Config(**shared, **SOFTCAPS))
        else:
            model = Gemma3ForCausalLM(Gemma3TextConfig(**shared))
    with torch.no_grad():
        model.lm_head.weight *= 2.2
        bias = torch.full((VOCABULARY + 5,), -100.0)
        bias[:VOCABULARY] = output_bias(seed)
        model.lm_head.bias = torch.nn.Parameter(bias)
    model.generation_config.eos_token_id = None
    return share(model.eval())


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models, their tokenizer, and raw prompts of unequal length that differ in the first id.

    Attributes:
        threshold: About the median entropy of the small model's glimpses, in nats.
    """

    small: Any
    large: Any
    tokenizer: Any
    prompts: list[list[int]]
    threshold: float

    def model(self, name: str) -> Any:
        """The small or the large one."""
        return {"small": self.small, "large": self.large}[name]

    @property
    def engine(self) -> Any:
        """The one under test; what cannot be gathered has a cache of its own in its place."""
        gathered = ENGINE.get() == "gather" and keeps_states(self.small)
        return "native" if gathered else ENGINE.get()

    def routed(
        self,
        *,
        on_invalid: Any = "raise",
        max_sequences: int = 64,
        drafts: Any = 0,
        **config: Any,
    ) -> Any:
        """A RoutedModel: greedy, the guard off and this pair's threshold unless told otherwise.

        Without drafts, each model computes each token once, and in order.
        """
        options = {
            "threshold": self.threshold,
            "temperature": 0.0,
            "top_p": 1.0,
            "repetition_guard": False,
            "max_think_tokens": 60,
            "max_answer_tokens": 8,
            "max_step_tokens": 12,
            **config,
        }
        token = TRIAL.set(True)
        try:
            return RoutedModel(
                self.small,
                self.large,
                self.tokenizer,
                gr.RouterConfig(**options),
                on_invalid=on_invalid,
                max_sequences=max_sequences,
                engine=self.engine,
                drafts=drafts,
            )
        finally:
            TRIAL.reset(token)


def raw_prompts(lengths: Sequence[int] = (23, 5, 41, 12, 2)) -> list[list[int]]:
    """Ids of printable characters; the first id is 10, 11, ... in order, and nowhere else."""
    generator = torch.Generator().manual_seed(3)
    return [
        [10 + index, *torch.randint(40, 90, (length - 1,), generator=generator).tolist()]
        for index, length in enumerate(lengths)
    ]


@cache
def random_pair(family: str, large_family: str | None = None, attention: str = "sdpa") -> Pair:
    """A pair with random weights, the large model one layer deeper."""
    small = random_model(family, 3, 7, attention)
    large = random_model(large_family or family, 4, 8, attention)
    pair = Pair(small, large, TOKENIZER, raw_prompts(), threshold=float("inf"))
    return dataclasses.replace(pair, threshold=median_entropy(pair))


@cache
def trained_pair() -> Pair:
    """The pair that ships with the package."""
    loaded = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        for path in (demo_pair.small_path(), demo_pair.large_path())
    ]
    tokenizer = AutoTokenizer.from_pretrained(demo_pair.small_path(), local_files_only=True)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.prompt}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for problem in task.held_out_problems(5, seed=1)
    ]
    small, large = (share(model.eval()) for model in loaded)
    return Pair(small, large, tokenizer, prompts, demo_pair.RECOMMENDED_THRESHOLD)


def pair_of(name: str) -> Pair:
    """A family of random models, or "trained"."""
    return trained_pair() if name == "trained" else random_pair(name)


def median_entropy(pair: Pair) -> float:
    """Of the glimpses when every step stays with the small model: half of them lie above."""
    results = pair.routed(max_answer_tokens=0).generate(pair.prompts)
    values = sorted(
        step.entropy
        for result in results
        for step in result.trace.steps
        if step.entropy is not None
    )
    assert len(values) > 20, "the small model writes too few steps for a median"
    return (values[len(values) // 2] + values[len(values) // 2 - 1]) / 2
