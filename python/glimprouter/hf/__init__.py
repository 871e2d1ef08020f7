"""The Hugging Face engine: :class:`RoutedModel` over a pair of causal language models.

Also for one model alone under ``generate()``: :class:`PagedCache` (attention over pages) and
:class:`GlimpseObserver` (what its glimpses are like).

Needs the extra ``hf`` (torch, transformers).
"""

try:
    import torch as _torch
    import transformers as _transformers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"glimprouter.hf needs {error.name}; install it with: pip install 'glimprouter[hf]'",
        name=error.name,
    ) from error

from glimprouter.hf.model import RoutedModel
from glimprouter.hf.pair.prompts import EncodedPrompt
from glimprouter.hf.pair.thinking import FORMATS, ThinkingFormat
from glimprouter.hf.run.run import Run
from glimprouter.hf.run.usage import RunUsage
from glimprouter.hf.sequence.events import Event, PageUsage, Result, TokenCounts
from glimprouter.hf.single.generate import routed_generate
from glimprouter.hf.single.observer import GlimpseObserver, GlimpseSummary, ObservedGlimpse
from glimprouter.hf.single.paged_cache import PagedCache

__all__ = [
    "FORMATS",
    "EncodedPrompt",
    "Event",
    "GlimpseObserver",
    "GlimpseSummary",
    "ObservedGlimpse",
    "PageUsage",
    "PagedCache",
    "Result",
    "RoutedModel",
    "Run",
    "RunUsage",
    "ThinkingFormat",
    "TokenCounts",
    "routed_generate",
]

del _torch, _transformers
