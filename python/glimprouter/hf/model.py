"""RoutedModel: two Hugging Face models that write one chain of thought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from glimprouter.config import RouterConfig
from glimprouter.files import check_writable
from glimprouter.hf.engine.choice import choose_engine, choose_execution
from glimprouter.hf.engine.maker import EngineMaker
from glimprouter.hf.graphs.compiled_pass import compile_pair
from glimprouter.hf.pair.asides import encode_aside
from glimprouter.hf.pair.boundaries import boundaries_of, check_width
from glimprouter.hf.pair.devices import KvMemory, check_memory, choose_devices, device_or_each
from glimprouter.hf.pair.facts import context_length
from glimprouter.hf.pair.loading import check_devices, load_pair
from glimprouter.hf.pair.locks import exclusive
from glimprouter.hf.pair.prompts import (
    Prompt,
    TemplateOptions,
    check_prompts,
    seeds_of,
)
from glimprouter.hf.pair.text import MODELS, SharedTokenizer
from glimprouter.hf.pair.thinking import ThinkingFormat, formats_of
from glimprouter.hf.pair.translation import Translation
from glimprouter.hf.run.begin import Beginnings
from glimprouter.hf.run.drafting import drafting_of
from glimprouter.hf.run.loop import Loop
from glimprouter.hf.run.options import check_options, options_of
from glimprouter.hf.run.overlapped import OverlappedLoop, overlaps
from glimprouter.hf.run.run import Run
from glimprouter.hf.run.sequences import RunPair, RunSequences
from glimprouter.hf.sequence.events import Result
from glimprouter.hf.sequence.record import SequenceRecord
from glimprouter.hf.sequence.record_state import record_from_state
from glimprouter.hf.sequence.saved import SavedSequence, pair_description
from glimprouter.policies import Policy
from glimprouter.router import StepRouter


class RoutedModel:
    """A small and a large causal language model, routed step by step (arXiv 2601.05110).

    Keys and values of both models are kept across hand-offs, so that no token is computed twice by
    the same model. Chat templates may differ, and so may the tokenizers: each model then sees the
    text in its own tokens, and few are computed twice (``Result.counts``).

    Threads may share a pair, and pairs may share models: forward passes of one model wait for one
    another, also while another run is only half iterated, and loading a pair waits for all passes.
    A model's own ``generate()`` does not wait: do not call it in another thread meanwhile, nor make
    the first runs of two pairs with graphs on one GPU at once (each watches the process for code
    that waits for the device).
    """

    def __init__(
        self,
        small: Any,
        large: Any,
        tokenizer: Any,
        config: RouterConfig | None = None,
        *,
        large_tokenizer: Any = None,
        thinking: str | ThinkingFormat | None = "auto",
        eos_token_ids: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        on_invalid: Literal["raise", "end"] = "raise",
        max_sequences: int = 64,
        engine: Literal["auto", "paged", "gather", "native"] = "auto",
        kv_memory_bytes: KvMemory = None,
        state_snapshots: int = 2,
        execution: Literal["auto", "eager", "graphs", "compiled"] = "auto",
        fused_layers: bool | Literal["auto"] = "auto",
        drafts: int | Literal["auto"] = "auto",
        policy: Policy | None = None,
        device: str | Mapping[str, str] | None = None,
    ) -> None:
        """Checks that the pair fits together.

        Args:
            small: A ``transformers`` causal language model in evaluation mode.
            large: Another.
            tokenizer: Tokenizer of the small model.
            config: Routing, sampling and limits (default: ``RouterConfig()``).
            large_tokenizer: Tokenizer of the large model (default: ``tokenizer``); another
                vocabulary is mapped by the bytes of its tokens.
            thinking: How the models mark their thinking: ``"auto"`` for what the tokenizers and
                their chat templates have (nothing, where there is nothing known), a name of
                ``glimprouter.hf.FORMATS``, a :class:`ThinkingFormat`, or None for models that do
                not think: they write steps to the end, ``answer`` is the whole text, and
                ``answer_model`` means nothing unless ``max_answer_tokens`` is set.
            eos_token_ids: Ids that end a sequence, as ``{"small": [...], "large": [...]}`` where
                the vocabularies differ; None for the tokenizers' and those of the models'
                generation configs.
            on_invalid: What to do when a model gives NaN, +inf or only -inf: ``"raise"``, or
                ``"end"`` that sequence with an error in its trace while the others go on.
            max_sequences: Sequences in flight; further prompts wait.
            engine: ``"paged"``: both models on one arena of pages, ragged batches; ``"gather"``:
                plain Hugging Face attention over copies; ``"native"``: caches of the models' own,
                whatever state they hold, one sequence after another; ``"auto"``: pages where both
                models can be served (found by trying), else gathering, and their own caches for
                those that it cannot serve, with a warning that says why.
            kv_memory_bytes: Memory for all that both models keep, unless gathered, > 0: on two
                devices on each, or ``{"small": ..., "large": ...}``. None for what the prompts of
                :meth:`generate` need, or ``max_sequences`` sequences as long as the longest of
                :meth:`stream`, up to half of this machine's (or a device's free memory). When it
                runs short, sequences are preempted and resumed.
            state_snapshots: Earlier states of a sequence that are kept where a state cannot be cut
                (recurrent layers, windows), >= 0: a rewind goes on from one of them.
            execution: How forward passes over pages run. ``"eager"``: by the models' own code.
                ``"graphs"``: passes of up to 256 tokens on a device (of models with states: of one
                token a sequence) are captured once for each size, and replayed, in later runs, too;
                hooks on the models do not see replays. ``"compiled"``: by ``torch.compile``, on the
                CPU all of them, on a device those that are captured. That takes seconds to minutes
                here, and is for the number of threads that torch has now; logits differ from the
                eager ones by rounding. ``"auto"``: graphs where both models are on pages of one
                device, else eager. The attribute of this name says what was chosen.
            fused_layers: Whether norms, rotary embeddings, activations and products of few rows, or
                all layers in one call (docs/tuning.md), are our own operations where a trial shows
                the model's results. ``"auto"``: on the CPU; on a GPU, not measured yet, with True.
            drafts: How many tokens the small model may draft for a sequence that waits for the
                large one, which then verifies them in one pass: 0 to 16. They change no token but
                by the rounding of other passes. ``"auto"`` drafts while it pays by the clock (none
                where a model keeps a state that cannot be cut), so two runs may differ by such
                rounding; with a number their passes are the same.
            policy: Who decides about steps (:mod:`glimprouter.policies`), where ``route`` and
                ``first_steps_large`` do not; None: the threshold. Later runs follow the attribute.
            device: Where steps run and pages lie, one of ``build_info()["devices"]``: None for
                where the models are; ``"cpu"`` copies the logits of models that are elsewhere. Or
                ``{"small": ..., "large": ...}``: passes of both run at once (docs/tuning.md).

        Raises:
            ValueError: Vocabularies that cannot be mapped, a model that is narrower than its
                tokenizer, a model that no engine can serve, a tokenizer that cannot write the
                delimiter, an option out of range, an ``execution`` or ``drafts`` that this pair
                cannot have, or a device that the models are not on.
            RuntimeError: A model cannot be compiled.

        Warns:
            RuntimeWarning: ``engine="auto"`` falls back, or models are where no step can run. In
                a run: a model's passes cannot be captured.
        """
        check_options(**locals())
        self.config = config or RouterConfig()
        self.small, self.large = small, large
        self.tokenizer = tokenizer
        self.large_tokenizer = large_tokenizer or tokenizer
        self.max_sequences = max_sequences
        self.on_invalid = on_invalid
        self.kv_memory_bytes = kv_memory_bytes
        self.policy = policy
        tokenizers = (self.tokenizer, self.large_tokenizer)
        self.thinking_formats = formats_of(thinking, tokenizers)
        boundaries = boundaries_of(tokenizers, (small, large), eos_token_ids, self.thinking_formats)
        self.boundary, self.large_boundary = boundaries
        self.translation = (
            None if self.boundary is self.large_boundary else Translation(tokenizers, boundaries)
        )
        for name, model, boundary in zip(MODELS, (small, large), boundaries, strict=True):
            check_width(name, model, boundary)
        models = {"small": small, "large": large}
        self._devices = choose_devices(device, models)
        self.device = device_or_each(self._devices)
        with exclusive(small, large):  # the trials put their own layers on the models
            fuses = execution != "compiled" and fused_layers
            chosen = choose_engine(engine, models, self._devices, fuses)
            check_memory(kv_memory_bytes, self._devices, chosen.name)
            self.engine, self.fused = chosen.name, chosen.fused
            self.execution = choose_execution(execution, chosen, self._devices.values())
            compiles = self.execution == "compiled"
            self._compiled, passes = compile_pair(models, self._devices, compiles)
        self.takes_drafts = chosen.takes_drafts
        self.drafting = drafting_of(drafts, possible=self.takes_drafts)
        self._overlaps = overlaps(models, chosen, self._devices)
        self._uncut = chosen.uncut("large")
        self._beginnings(True, {})  # refuses a policy that this pair cannot serve
        self._engines = EngineMaker(
            models,
            chosen,
            max_sequences,
            self.translation,
            self._devices,
            self.execution != "eager",
            passes,
            state_snapshots,
        )

    @classmethod
    def from_pretrained(
        cls,
        small: str | Path,
        large: str | Path,
        *,
        config: RouterConfig | None = None,
        device: str | Mapping[str, str] | None = None,
        device_map: Any = None,
        dtype: Any = "auto",
        attn_implementation: Any = None,
        quantization_config: Any = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> RoutedModel:
        """Load a pair from two directories (or hub names), and place it.

        What ``transformers`` takes is for both models, or ``{"small": ..., "large": ...}``.

        Args:
            small: Directory of the small model with its tokenizer, or of a PEFT adapter. A base and
                its adapter, or two of one base, share the base's weights (same options for both).
            large: Directory of the large model, likewise.
            config: As in the constructor.
            device: Where both models go, or each one, and as in the constructor, such as
                ``"cuda:0"``; None for where ``transformers`` puts them.
            device_map: As in ``transformers``, where models are spread otherwise.
            dtype: ``"auto"``, ``torch.bfloat16``, ...
            attn_implementation: As in ``transformers``; of passes that do not run over pages.
            quantization_config: As in ``transformers``.
            trust_remote_code: Run code that ships with the models; off unless you ask for it.
            **options: Further arguments of the constructor; all others are those of
                ``from_pretrained`` in ``transformers`` (``revision``, ``token``, ...), which
                refuses what it does not know.

        Raises:
            ValueError: As in the constructor, or no such device.
            OSError: Nothing to load there.
        """
        full_device = check_devices(device)
        own = {name: options.pop(name) for name in options_of(cls) & options.keys()}
        check_options(config=config, **own)
        loaded = {
            "dtype": dtype,
            "device_map": device_map,
            "attn_implementation": attn_implementation,
            "quantization_config": quantization_config,
            "trust_remote_code": trust_remote_code,
            **options,
        }
        models, tokenizers = load_pair(small, large, full_device, loaded)
        own.setdefault("large_tokenizer", tokenizers[1])
        return cls(models[0], models[1], tokenizers[0], config, device=full_device, **own)

    def generate(
        self,
        prompts: Sequence[Prompt],
        seeds: int | Sequence[int] | None = None,
        *,
        trace_path: str | Path | None = None,
        chat_template_kwargs: TemplateOptions = None,
        **overrides: Any,
    ) -> list[Result]:
        """Answer some prompts.

        Args:
            prompts: A list; each a string (one user message), a list of dicts (a chat), a list
                of ids (raw, where both models have the same vocabulary), or an
                :class:`EncodedPrompt` with ids for each model.
            seeds: One for all (the streams differ), one a prompt, or None for 0.
            trace_path: With one prompt: where its trace is written, also after an interrupt.
            chat_template_kwargs: Handed to both chat templates (``enable_thinking``, ``tools``,
                ...): a dict for all prompts, or a list with one (or None) a prompt. A prompt whose
                thinking is closed by its template is answered at once.
            **overrides: Fields of :class:`RouterConfig` for this call.

        Returns:
            Results in the order of the prompts.

        Raises:
            TypeError: ``prompts`` is not a list of prompts.
            ValueError: An empty prompt, one that leaves no room for the answer, seeds of another
                number, a chat without template.
            RuntimeError: Invalid logits with ``on_invalid="raise"``.
            OSError: ``trace_path`` cannot be written; found out before the models run.
        """
        check_prompts(prompts)
        if trace_path is not None and len(prompts) != 1:
            raise ValueError(f"trace_path takes one prompt, got {len(prompts)}")
        if trace_path is not None:
            check_writable(trace_path)
        run = self._start(prompts, seeds, overrides, chat_template_kwargs, stream_tokens=False)
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
        *,
        chat_template_kwargs: TemplateOptions = None,
        **overrides: Any,
    ) -> Run:
        """As :meth:`generate`, but an iterator over :class:`Event`; ``trace(i)`` at any time.

        Without prompts memory is planned for those that :meth:`Run.add` brings: ``max_sequences``
        of up to 12,288 tokens (less where a context is), or ``kv_memory_bytes``.
        """
        return self._start(prompts, seeds, overrides, chat_template_kwargs, stream_tokens=True)

    def _start(
        self,
        prompts: Sequence[Prompt],
        seeds: int | Sequence[int] | None,
        overrides: dict[str, Any],
        template_options: TemplateOptions,
        *,
        stream_tokens: bool,
    ) -> Run:
        check_prompts(prompts)
        common = self._beginnings(stream_tokens, overrides)
        records, options = common.begin(prompts, seeds_of(seeds, prompts), template_options)
        return Run(self._loop(records, common), common, records, options)

    def resume(self, saved: Sequence[bytes]) -> Run:
        """Goes on with sequences that :meth:`Run.save` has saved, as :meth:`stream` does.

        Args:
            saved: Bytes of runs of this pair, here or in another process; each goes on with its own
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
        common = self._beginnings(True, {})
        records = [record_from_state(s.record, 0, **common.record_options) for s in states]
        run = Run(self._loop(records, common), common, [], [])
        for state in states:
            run.load(state)
        return run

    def _beginnings(self, stream_tokens: bool, overrides: dict[str, Any]) -> Beginnings:
        """What the sequences of a run have in common."""
        large, translation = (self.large_tokenizer, self.large_boundary), self.translation
        policy = self.policy
        record_options = {
            "reader": translation or SharedTokenizer(self.tokenizer),
            "close_ids": self.boundary.close_ids,
            "stream_tokens": stream_tokens,
            "closing_writer": "small" if translation else None,
            "thinks": bool(self.boundary.think_end_ids or self.boundary.think_end_markers),
        }
        return Beginnings(
            self.config,
            overrides,
            policy,
            (self.tokenizer, self.large_tokenizer),
            (self.boundary, self.large_boundary),
            {"small": context_length(self.small), "large": context_length(self.large)},
            record_options,
            encode_aside(policy, *large, translation, self._uncut),
        )

    def _loop(self, records: list[SequenceRecord], common: Beginnings) -> Loop:
        streams = bool(common.record_options["stream_tokens"])
        if streams and not records and self.kv_memory_bytes is None:
            records = [common.unknown()]

        def load_record(saved: SavedSequence, index: int) -> SequenceRecord:
            return record_from_state(saved.record, index, **common.record_options)

        pair = RunPair(
            engine=self.engine,
            description=pair_description({"small": self.small, "large": self.large}),
            models=(self.small, self.large),
            contexts=dict(common.contexts),
            translation=self.translation,
            record=load_record,
            policy=None if common.policy is None else common.policy.name,
        )
        with exclusive(self.small, self.large):  # graphs and pages may be those of other runs
            engine = self._engines.make(records, self.kv_memory_bytes, self._compiled, streams)
        router = StepRouter(
            self.boundary,
            self.config,
            self.large_boundary,
            max_sequences=self.max_sequences,
            device=self._devices["small"],
        )
        # An aside is read within a pass of the small model.
        loop = OverlappedLoop if self._overlaps and common.aside is None else Loop
        return loop(
            RunSequences(router, engine, pair, self.max_sequences),
            max_sequences=self.max_sequences,
            raise_on_invalid=self.on_invalid == "raise",
            drafting=self.drafting,
            policy=common.policy,
            aside=common.aside,
        )
