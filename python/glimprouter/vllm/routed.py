"""RoutedEngines: two vLLM engines that write one chain of thought."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from glimprouter.boundary import StepBoundary
from glimprouter.config import RouterConfig, check_integer
from glimprouter.hf.pair.prompts import Prompt, TemplateOptions, check_prompts, seeds_of
from glimprouter.hf.pair.text import MODELS, SharedTokenizer
from glimprouter.hf.pair.thinking import ThinkingFormat, check_thinking
from glimprouter.hf.run.begin import Beginnings
from glimprouter.hf.run.options import run_config
from glimprouter.hf.sequence.events import Result
from glimprouter.policies import Policy
from glimprouter.vllm.engines.base import Engine, EngineFacts, EngineUsage
from glimprouter.vllm.engines.checked import CheckedEngine
from glimprouter.vllm.engines.in_process import InProcessEngine
from glimprouter.vllm.engines.server import Server
from glimprouter.vllm.loop_thread import LoopThread
from glimprouter.vllm.mirror import Mirror
from glimprouter.vllm.pair import EnginePair, pair_of
from glimprouter.vllm.rules import check_policy
from glimprouter.vllm.run import EngineRun


class RoutedEngines:
    """A small and a large model on vLLM, routed step by step (arXiv 2601.05110).

    A problem is a series of requests: the small engine goes on over easy steps, decided by the gate
    inside of it, and ends at the first hard one; the large engine writes one step. So there are at
    most two requests for each hard step, one before them and one for the answer. Prefix caching
    keeps what an engine has computed, up to whole blocks.

    All is in one event loop. ``agenerate``, ``astream`` and ``aresume`` use the caller's;
    ``generate``, ``stream`` and ``resume`` one in a thread of their own, where engines of this
    process must not have been used in another before.
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
        policy: Policy | None = None,
        on_invalid: Literal["raise", "end"] = "raise",
        max_sequences: int = 256,
        timeout: float = 120.0,
        patience: float = 300.0,
    ) -> None:
        """Nothing is asked yet: the first call asks both engines for model, tokenizer and gate.

        Args:
            small: The small model's engine: a URL, a :class:`Server`, or an ``AsyncLLM`` of this
                process (:func:`gated_engine` starts one).
            large: The large model's, likewise.
            tokenizer: Tokenizer of the small model.
            config: Routing, sampling and limits (default: ``RouterConfig()``). ``route="manual"``
                is not for engines: their gates decide.
            large_tokenizer: Tokenizer of the large model (default: ``tokenizer``); another
                vocabulary is mapped by the bytes of its tokens.
            thinking: As in :class:`glimprouter.hf.RoutedModel`.
            eos_token_ids: Likewise; None for the tokenizers' and those of the generation configs,
                which servers do not tell: then those beside the tokenizers.
            policy: None for the config's threshold, or an ``EntropyThreshold`` or ``RandomShare``
                of :mod:`glimprouter.policies`: gates decide by entropies or by coins. Saved
                sequences do not hold it.
            on_invalid: What to do when a model gives NaN, +inf or only -inf: ``"raise"``, or
                ``"end"`` that sequence with an error in its trace while the others go on.
            max_sequences: Sequences in flight; further prompts wait.
            timeout: Seconds without a token after which a request counts as lost, > 0. A long
                prompt is silent while it is read, and so is one that waits for a full engine. Where
                nobody reads tokens as they come (``generate``) answers come as a whole: then an
                engine that has said nothing for so long is asked for a token.
            patience: Seconds that an engine may stay away, >= 0, while requests that were lost are
                sent again, from where the sequence stands. Then its sequences end with an error,
                and are kept in ``saved``.

        Raises:
            TypeError: An argument is something else.
            ValueError: A number out of range, or an unknown name.
        """
        check_integer("max_sequences", max_sequences, 1)
        check_thinking(thinking)
        if on_invalid not in ("raise", "end"):
            raise ValueError(f'on_invalid must be "raise" or "end", got {on_invalid!r}')
        if timeout <= 0 or patience < 0:
            raise ValueError(
                f"timeout must be > 0 and patience >= 0 seconds, got {timeout} and {patience}"
            )
        self.config = config or RouterConfig()
        run_config(self.config, {}, None)
        self.tokenizer = tokenizer
        self.large_tokenizer = large_tokenizer or tokenizer
        self.policy = policy
        self.on_invalid = on_invalid
        self.max_sequences = max_sequences
        self.patience = patience
        self.saved: dict[int, bytes] = {}
        self._thinking = thinking
        self._eos_token_ids = eos_token_ids
        self._engines = {
            name: CheckedEngine(name, _engine(given), timeout)
            for name, given in zip(MODELS, (small, large), strict=True)
        }
        self._pair: EnginePair | None = None
        self._thread: LoopThread | None = None
        self._asking = asyncio.Lock()

    @property
    def policy(self) -> Policy | None:
        """What decides, of runs that begin from now on; None for the config's threshold.

        Raises:
            TypeError: When set, to no policy.
            ValueError: When set, to one that gates cannot follow.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: Policy | None) -> None:
        check_policy(policy)
        self._policy = policy

    @property
    def usage(self) -> dict[str, EngineUsage]:
        """What each engine has been asked for, by all runs."""
        return {name: engine.usage for name, engine in self._engines.items()}

    @property
    def away(self) -> dict[str, float]:
        """Seconds since engines were lost that have not answered again, by name."""
        now = time.monotonic()
        engines = self._engines.items()
        return {name: now - own.lost_at for name, own in engines if own.lost_at is not None}

    @property
    def facts(self) -> Mapping[str, EngineFacts]:
        """What both engines said of themselves, by name.

        Raises:
            RuntimeError: They were not asked yet.
        """
        return self._checked().facts

    @property
    def contexts(self) -> dict[str, int]:
        """Positions of each model, by name; like the other facts of the pair, once it was checked.

        Raises:
            RuntimeError: The engines were not asked yet.
        """
        return self._checked().contexts

    @property
    def boundary(self) -> StepBoundary:
        """Of the small model."""
        return self._checked().boundaries[0]

    @property
    def large_boundary(self) -> StepBoundary:
        """Of the large model; the same one where both agree."""
        return self._checked().boundaries[1]

    @property
    def thinking_formats(self) -> list[ThinkingFormat | None]:
        """How the models mark their thinking; None for one that does not."""
        return list(self._checked().formats)

    @property
    def thread(self) -> LoopThread:
        """Whose event loop is used by all methods for callers that have none."""
        if self._thread is None:
            self._thread = LoopThread()
        return self._thread

    def check(self) -> None:
        """As :meth:`acheck`, where the caller is in no event loop."""
        self.thread.call(self.acheck())

    def check_prompts(self, prompts: Sequence[Prompt], **overrides: Any) -> None:
        """Raises what :meth:`generate` would say to prompts; nothing is written."""
        check_prompts(prompts)
        self.check()
        self._beginnings(overrides, tokens=False).begin(prompts, seeds_of(0, prompts), None)

    async def aprobe(self) -> None:
        """Asks both engines whether they answer; :attr:`away` says which do not."""
        await asyncio.gather(*(engine.probe() for engine in self._engines.values()))

    def _checked(self) -> EnginePair:
        if self._pair is None:
            raise RuntimeError("the engines were not asked yet; call check() before")
        return self._pair

    async def acheck(self) -> None:
        """Asks both engines whether they serve, as the first prompts do.

        Raises:
            EngineLost: One does not answer.
            EngineRefused: One is of another model or version, or has no gate.
            ValueError: Tokenizers that do not make a pair.
        """
        async with self._asking:
            if self._pair is None:
                tokenizers = (self.tokenizer, self.large_tokenizer)
                self._pair = await pair_of(
                    self._engines, tokenizers, self._thinking, self._eos_token_ids
                )

    async def astream(
        self,
        prompts: Sequence[Prompt],
        seeds: int | Sequence[int] | None = None,
        *,
        chat_template_kwargs: TemplateOptions = None,
        **overrides: Any,
    ) -> EngineRun:
        """Begins a run; arguments and errors are those of :meth:`generate`."""
        return await self._start(prompts, seeds, chat_template_kwargs, overrides, tokens=True)

    async def agenerate(
        self,
        prompts: Sequence[Prompt],
        seeds: int | Sequence[int] | None = None,
        *,
        chat_template_kwargs: TemplateOptions = None,
        **overrides: Any,
    ) -> list[Result]:
        """As :meth:`generate`, in the caller's event loop."""
        run = await self._start(prompts, seeds, chat_template_kwargs, overrides, tokens=False)
        return await self._results(run, len(prompts))

    async def aresume(self, saved: Sequence[bytes]) -> EngineRun:
        """As :meth:`resume`, in the caller's event loop."""
        if isinstance(saved, str | bytes) or not isinstance(saved, Sequence):
            raise TypeError("saved must be a list; for one sequence pass [saved]")
        await self.acheck()
        run = self._run(self._beginnings({}, tokens=True))
        try:
            for own in saved:
                run.load(own)
        except BaseException:
            await run.aclose()
            raise
        return run

    def generate(
        self,
        prompts: Sequence[Prompt],
        seeds: int | Sequence[int] | None = None,
        *,
        chat_template_kwargs: TemplateOptions = None,
        **overrides: Any,
    ) -> list[Result]:
        """Answer some prompts.

        Args:
            prompts: As in :meth:`glimprouter.hf.RoutedModel.generate`.
            seeds: Likewise.
            chat_template_kwargs: Likewise.
            **overrides: Fields of :class:`glimprouter.RouterConfig` for this call.

        Returns:
            Results in the order of the prompts. Where an engine stayed away, a trace has an
            ``error``, and ``saved`` has the sequence.

        Raises:
            TypeError: ``prompts`` is not a list of prompts.
            ValueError: An empty prompt, one that leaves no room for the answer, seeds of another
                number, a chat without template.
            EngineLost: An engine does not answer when the first prompts come.
            EngineRefused: An engine that cannot serve: another model, tokenizer or version, or no
                gate.
            RuntimeError: Invalid logits with ``on_invalid="raise"``.
        """
        return self.thread.call(
            self.agenerate(prompts, seeds, chat_template_kwargs=chat_template_kwargs, **overrides)
        )

    def stream(
        self,
        prompts: Sequence[Prompt],
        seeds: int | Sequence[int] | None = None,
        *,
        chat_template_kwargs: TemplateOptions = None,
        **overrides: Any,
    ) -> EngineRun:
        """As :meth:`generate`, but an iterator over events.

        Without prompts it waits for those that :meth:`EngineRun.add` brings.
        """
        return self.thread.call(
            self.astream(prompts, seeds, chat_template_kwargs=chat_template_kwargs, **overrides)
        )

    def resume(self, saved: Sequence[bytes]) -> EngineRun:
        """Goes on with sequences of ``saved``, as :meth:`stream` does.

        Args:
            saved: Bytes from the attribute, or from :attr:`EngineRun.saved`, also in another
                process; each goes on with its own options.

        Raises:
            TypeError: No list, or an entry is no bytes.
            ValueError: Foreign or damaged bytes, or those of another pair.
        """
        return self.thread.call(self.aresume(saved))

    async def aclose(self) -> None:
        """Closes connections; engines of this process go on."""
        await asyncio.gather(*(engine.close() for engine in self._engines.values()))

    def close(self) -> None:
        """As :meth:`aclose`, and ends the thread."""
        if self._thread is not None:
            self._thread.call(self.aclose())
            self._thread.close()
            self._thread = None

    async def _start(
        self,
        prompts: Sequence[Prompt],
        seeds: int | Sequence[int] | None,
        template_options: TemplateOptions,
        overrides: dict[str, Any],
        *,
        tokens: bool,
    ) -> EngineRun:
        check_prompts(prompts)
        await self.acheck()
        common = self._beginnings(overrides, tokens=tokens)
        records, options = common.begin(prompts, seeds_of(seeds, prompts), template_options)
        run = self._run(common)
        run.begin(records, options)
        return run

    def _run(self, common: Beginnings) -> EngineRun:
        pair, thread = self._checked(), self._thread
        return EngineRun(
            pair,
            Mirror(pair.boundaries, self.config, self.max_sequences, self._policy),
            common,
            max_sequences=self.max_sequences,
            patience=self.patience,
            raise_on_invalid=self.on_invalid == "raise",
            thread=thread if thread is not None and thread.is_here else None,
        )

    async def _results(self, run: EngineRun, count: int) -> list[Result]:
        results: dict[int, Result] = {}
        try:
            async for event in run:
                if event.result is not None:
                    results[event.sequence] = event.result
        finally:
            await run.aclose()
            self.saved = dict(run.saved)
        return [results[index] for index in range(count)]

    def _beginnings(self, overrides: Mapping[str, Any], *, tokens: bool) -> Beginnings:
        pair = self._checked()
        boundary = pair.boundaries[0]
        return Beginnings(
            self.config,
            dict(overrides),
            self._policy,
            (self.tokenizer, self.large_tokenizer),
            pair.boundaries,
            pair.contexts,
            {
                "reader": pair.translation or SharedTokenizer(self.tokenizer),
                "close_ids": boundary.close_ids,
                "stream_tokens": tokens,
                "closing_writer": "small" if pair.translation else None,
                "thinks": bool(boundary.think_end_ids or boundary.think_end_markers),
            },
        )


def _engine(given: Any) -> Engine:
    if isinstance(given, str):
        return Server(given)
    if isinstance(given, Server):
        return given
    if all(hasattr(given, name) for name in ("facts", "write", "close")):
        engine: Engine = given
        return engine
    return InProcessEngine(given)
