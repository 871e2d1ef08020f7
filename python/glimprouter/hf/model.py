"""RoutedModel: two Hugging Face models that write one chain of thought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from glimprouter.config import RouterConfig, check_integer, check_random_key
from glimprouter.hf.engine.choice import choose_engine, choose_graphs
from glimprouter.hf.engine.gather_runner import ModelRunner
from glimprouter.hf.engine.maker import EngineMaker
from glimprouter.hf.graphs.compiled import CompiledForward, compile_each
from glimprouter.hf.graphs.compiled_decode import CompiledDecode
from glimprouter.hf.pair.boundaries import boundaries_of, check_width
from glimprouter.hf.pair.devices import choose_device
from glimprouter.hf.pair.facts import context_length
from glimprouter.hf.pair.prompts import EncodedPrompt, Prompt, encode_prompt
from glimprouter.hf.pair.text import MODELS, SharedTokenizer
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.run.loop import Rounds, RunPair
from glimprouter.hf.run.run import Run
from glimprouter.hf.sequence.events import Result
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.saved import SavedSequence, pair_description
from glimprouter.router import StepRouter
from glimprouter.trace import Trace


class RoutedModel:
    """A small and a large causal language model, routed step by step (arXiv 2601.05110).

    Keys and values of both models are kept across hand-offs, so that no token is computed twice by
    the same model. Chat templates may differ, and so may the tokenizers: each model then sees the
    text in its own tokens, and few are computed twice (``Result.counts``).
    """

    def __init__(
        self,
        small: Any,
        large: Any,
        tokenizer: Any,
        config: RouterConfig | None = None,
        *,
        large_tokenizer: Any = None,
        think_start: str | None = "<think>",
        think_end: str | None = "</think>",
        eos_token_ids: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        on_invalid: Literal["raise", "end"] = "raise",
        max_sequences: int = 64,
        engine: Literal["auto", "paged", "gather"] = "auto",
        kv_memory_bytes: int | None = None,
        compile: bool = False,
        device: str | None = None,
        graphs: bool | None = None,
    ) -> None:
        """Checks that the pair fits together.

        Args:
            small: A ``transformers`` causal language model in evaluation mode.
            large: Another.
            tokenizer: Of the small model.
            config: Routing, sampling and limits (default: ``RouterConfig()``).
            large_tokenizer: Of the large model (default: ``tokenizer``); another vocabulary is
                mapped by the bytes of its tokens.
            think_start: The token that opens thinking, None when there is none.
            think_end: The token that ends thinking, None when there is none.
            eos_token_ids: Ids that end a sequence, as ``{"small": [...], "large": [...]}`` where
                the vocabularies differ; None for the tokenizers' and those of the models'
                generation configs.
            on_invalid: What to do when a model gives NaN, +inf or only -inf: ``"raise"``, or
                ``"end"`` that sequence with an error in its trace while the others go on.
            max_sequences: Sequences in flight; further prompts wait.
            engine: ``"paged"``: both models on one arena of pages, ragged batches; ``"gather"``:
                plain Hugging Face attention over copies; ``"auto"``: pages where both models can
                be served (found by trying), else gathering, with a warning that says why.
            kv_memory_bytes: Memory for keys and values of both models on pages, > 0; None for what
                the prompts of :meth:`generate` need, or ``max_sequences`` sequences as long as the
                longest of :meth:`stream`, up to half of this machine's (or the device's free
                memory). When it runs short, sequences are preempted and resumed.
            compile: Whether passes over pages are compiled (``torch.compile``): all of them on the
                CPU, on a device those that ``graphs`` captures. This is done here, in seconds to
                minutes, on the CPU for the number of threads that torch has now. Logits differ
                from the eager ones by rounding.
            device: Where steps run and pages lie, one of ``build_info()["devices"]``: None for
                where the models are; ``"cpu"`` copies the logits of models that are elsewhere.
            graphs: Whether decode passes (one token of each sequence) on a device are captured as
                graphs, once for each size, and replayed, also in later runs, for which pages and
                graphs are kept. Hooks on the models do not see replays. None: where both models
                are on pages of one device.

        Raises:
            ValueError: Vocabularies that cannot be mapped, a model that is narrower than its
                tokenizer, a layer type that cannot be served, a tokenizer that cannot write the
                delimiter, an option out of range, ``compile`` without pages, ``graphs`` without
                pages on a device, or a device that the models are not on.
            RuntimeError: A model cannot be compiled.

        Warns:
            RuntimeWarning: ``engine="auto"`` falls back, or models are where no step can run. In
                a run: a model's decode passes cannot be captured.
        """
        if engine not in ("auto", "paged", "gather"):
            raise ValueError(f'engine must be "auto", "paged" or "gather", got {engine!r}')
        if kv_memory_bytes is not None:
            check_integer("kv_memory_bytes", kv_memory_bytes, 1, high=2**63 - 1)
        if on_invalid not in ("raise", "end"):
            raise ValueError(f'on_invalid must be "raise" or "end", got {on_invalid!r}')
        if config is not None and not isinstance(config, RouterConfig):
            raise TypeError(f"config must be a RouterConfig, got {type(config).__name__}")
        if not isinstance(max_sequences, int) or isinstance(max_sequences, bool):
            raise TypeError(f"max_sequences must be an integer, got {max_sequences!r}")
        if max_sequences < 1:
            raise ValueError(f"max_sequences must be >= 1, got {max_sequences}")
        self.config = config or RouterConfig()
        if self.config.route == "manual":
            raise ValueError('route="manual" needs your own loop around StepRouter')
        self.small, self.large = small, large
        self.tokenizer = tokenizer
        self.large_tokenizer = large_tokenizer or tokenizer
        self.max_sequences = max_sequences
        self.on_invalid = on_invalid
        tokenizers = (self.tokenizer, self.large_tokenizer)
        boundaries = boundaries_of(
            tokenizers,
            (small, large),
            eos_token_ids,
            think_start,
            think_end,
        )
        self.boundary, self.large_boundary = boundaries
        self.translation = (
            None if self.boundary is self.large_boundary else Translation(tokenizers, boundaries)
        )
        for name, model, boundary in zip(MODELS, (small, large), boundaries, strict=True):
            check_width(name, model, boundary)
            ModelRunner(name, model, 1)  # refuses layers that cannot be served
        self.kv_memory_bytes = kv_memory_bytes
        models = {"small": small, "large": large}
        self.device = choose_device(device, models)
        chosen = choose_engine(engine, models, self.device, not compile)
        self.engine, self.fused = chosen.name, chosen.fused
        self.graphs = choose_graphs(graphs, self.engine, self.device, compile)
        self.compiled: dict[str, CompiledForward] | None = None
        decode: dict[str, CompiledDecode] | None = None
        if compile and self.device == "cpu":
            self.compiled = compile_each(models, CompiledForward)
        elif compile:
            decode = compile_each(
                models, lambda model: CompiledDecode(model, self.device, max_sequences)
            )
        self._engines = EngineMaker(
            models, chosen, max_sequences, self.translation, self.device, self.graphs, decode
        )

    @classmethod
    def from_pretrained(
        cls,
        small_directory: str | Path,
        large_directory: str | Path,
        *,
        dtype: Any = "auto",
        config: RouterConfig | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> RoutedModel:
        """Load a pair from two directories (or hub names).

        Args:
            small_directory: Of the small model, with its tokenizer.
            large_directory: Of the large model, with its tokenizer.
            dtype: As in ``transformers``: ``"auto"``, ``torch.bfloat16``, ...
            config: As in the constructor.
            trust_remote_code: Run code that ships with the models; off unless you ask for it.
            **options: Further arguments of the constructor.
        """
        tokenizers: list[Any] = []
        models: list[Any] = []
        for directory in (small_directory, large_directory):
            shared = {
                "trust_remote_code": trust_remote_code,
                "local_files_only": Path(directory).is_dir(),
            }
            tokenizers.append(AutoTokenizer.from_pretrained(directory, **shared))
            model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **shared)
            models.append(model.eval())
        return cls(
            models[0], models[1], tokenizers[0], config, large_tokenizer=tokenizers[1], **options
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        seeds: int | Sequence[int] | None = None,
        *,
        trace_path: str | Path | None = None,
        **overrides: Any,
    ) -> list[Result]:
        """Answer some prompts.

        Args:
            prompts: A list; each a string (one user message), a list of dicts (a chat), a list
                of ids (raw, where both models have the same vocabulary), or an
                :class:`EncodedPrompt` with ids for each model.
            seeds: One for all (the streams differ), one a prompt, or None for 0.
            trace_path: With one prompt: where its trace is written, also after an interrupt.
            **overrides: Fields of :class:`RouterConfig` for this call.

        Returns:
            Results in the order of the prompts.

        Raises:
            TypeError: ``prompts`` is not a list of prompts.
            ValueError: An empty prompt, one that leaves no room for the answer, seeds of another
                number, a chat without template.
            RuntimeError: Invalid logits with ``on_invalid="raise"``.
        """
        if trace_path is not None and len(prompts) != 1:
            raise ValueError(f"trace_path takes one prompt, got {len(prompts)}")
        run = self._start(prompts, seeds, overrides, stream_tokens=False)
        results: dict[int, Result] = {}
        try:
            for event in run:
                if event.result is not None:
                    results[event.sequence] = event.result
        finally:
            if trace_path is not None:
                run.trace(0).to_jsonl(trace_path)
        return [results[index] for index in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Prompt],
        seeds: int | Sequence[int] | None = None,
        **overrides: Any,
    ) -> Run:
        """As :meth:`generate`, but an iterator over :class:`Event`; ``trace(i)`` at any time."""
        return self._start(prompts, seeds, overrides, stream_tokens=True)

    def _start(
        self,
        prompts: Sequence[Prompt],
        seeds: int | Sequence[int] | None,
        overrides: dict[str, Any],
        *,
        stream_tokens: bool,
    ) -> Run:
        if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
            raise TypeError("prompts must be a list of prompts; for one prompt pass [prompt]")
        config = self.config.replace(**overrides)
        if config.route == "manual":
            raise ValueError('route="manual" needs your own loop around StepRouter')
        encoded = [encode_prompt(p, self.tokenizer, self.large_tokenizer) for p in prompts]
        records, options = [], []
        for index, (prompt, seed) in enumerate(zip(encoded, _seeds(seeds, prompts), strict=True)):
            limit = self._think_limit(index, prompt, config)
            trace = Trace(
                prompt=prompt.text,
                seed=seed,
                substream=index,
                threshold=config.threshold,
                think_limit=limit,
                answer_model=config.answer_model,
            )
            records.append(
                SequenceRecord(
                    index,
                    prompt,
                    trace,
                    max_new_tokens=limit + self._reserved(config),
                    **self._record_options(stream_tokens),
                )
            )
            options.append(
                {"seed": seed, "substream": index, **overrides, "max_think_tokens": limit}
            )
        return Run(self._rounds(records, stream_tokens), records, options)

    def resume(self, saved: Sequence[bytes]) -> Run:
        """Goes on with sequences that :meth:`Run.save` has saved, as :meth:`stream` does.

        Args:
            saved: Of runs of this pair, here or in another process; each goes on with its own
                options.

        Raises:
            TypeError: No list, or an entry is no bytes.
            ValueError: Foreign or damaged bytes, another pair or engine, or a sequence that
                ``kv_memory_bytes`` cannot hold.
            RuntimeError: More sequences than ``max_sequences``.
        """
        if isinstance(saved, str | bytes) or not isinstance(saved, Sequence):
            raise TypeError("saved must be a list; for one sequence pass [saved]")
        states = [SavedSequence.from_bytes(entry) for entry in saved]
        options = self._record_options(stream_tokens=True)
        records = [SequenceRecord.from_state(s.record, 0, **options) for s in states]
        run = Run(self._rounds(records, stream_tokens=True), [], [])
        for state in states:
            run.load(state)
        return run

    def _record_options(self, stream_tokens: bool) -> dict[str, Any]:
        """The fields of a record that the pair decides."""
        return {
            "reader": self.translation or SharedTokenizer(self.tokenizer),
            "close_ids": self.boundary.close_ids,
            "stream_tokens": stream_tokens,
            "closing_writer": "small" if self.translation else None,
        }

    def _rounds(self, records: list[SequenceRecord], stream_tokens: bool) -> Rounds:
        models = {"small": self.small, "large": self.large}

        def load_record(saved: SavedSequence, index: int) -> SequenceRecord:
            options = self._record_options(stream_tokens)
            return SequenceRecord.from_state(saved.record, index=index, **options)

        pair = RunPair(
            engine=self.engine,
            description=pair_description(models),
            contexts={name: context_length(model) for name, model in models.items()},
            translation=self.translation,
            record=load_record,
        )
        rows = self.max_sequences
        return Rounds(
            StepRouter(
                self.boundary,
                self.config,
                self.large_boundary,
                max_sequences=rows,
                device=self.device,
            ),
            self._engines.make(records, self.kv_memory_bytes, self.compiled, stream_tokens),
            pair,
            max_rows=rows,
            raise_on_invalid=self.on_invalid == "raise",
        )

    def _reserved(self, config: RouterConfig) -> int:
        """Tokens behind the thinking: the closing ids and the answer."""
        return config.max_answer_tokens + len(self.boundary.close_ids)

    def _think_limit(
        self,
        index: int,
        prompt: EncodedPrompt,
        config: RouterConfig,
    ) -> int:
        """The thinking budget: the configured one, or what prompt and answer leave of the context.

        The answer's tokens and the closing ids are reserved from the start.
        """
        reserved = self._reserved(config)
        limit = config.max_think_tokens
        for name, model, ids in (
            ("small", self.small, prompt.small),
            ("large", self.large, prompt.large),
        ):
            context = context_length(model)
            room = context - len(ids) - reserved
            if room < 1:
                raise ValueError(
                    f"prompt {index} has {len(ids)} tokens; with {reserved} reserved for the answer"
                    f" nothing is left of the {name} model's context of {context}; shorten the"
                    " prompt or lower max_answer_tokens"
                )
            limit = min(limit, room)
        return int(limit)


def _seeds(seeds: int | Sequence[int] | None, prompts: Sequence[Prompt]) -> list[int]:
    """One a prompt, all of them checked before the first prompt starts."""
    if not isinstance(seeds, Sequence | np.ndarray):
        seeds = [0 if seeds is None else seeds] * len(prompts)
    if len(seeds) != len(prompts):
        raise ValueError(f"got {len(seeds)} seeds for {len(prompts)} prompts")
    for seed in seeds:
        check_random_key("seed", seed)
    return [int(seed) for seed in seeds]
