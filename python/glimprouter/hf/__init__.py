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

from glimprouter.hf.events import Event, Result, TokenCounts
from glimprouter.hf.generate import routed_generate
from glimprouter.hf.model import RoutedModel
from glimprouter.hf.observer import GlimpseObserver, GlimpseSummary, ObservedGlimpse
from glimprouter.hf.paged_cache import PagedCache
from glimprouter.hf.prompts import EncodedPrompt
from glimprouter.hf.run import Run

__all__ = [
    "EncodedPrompt",
    "Event",
    "GlimpseObserver",
    "GlimpseSummary",
    "ObservedGlimpse",
    "PagedCache",
    "Result",
    "RoutedModel",
    "Run",
    "TokenCounts",
    "routed_generate",
]

del _torch, _transformers
