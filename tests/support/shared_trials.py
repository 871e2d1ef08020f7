"""The trials of the models that tests share: their own passes are computed once for all of them.

What is tried against them is computed anew for every `RoutedModel`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glimprouter.hf.attention.trial import trial_of as new_trial_of
from glimprouter.hf.trial.trial import Trial

_SHARED: dict[int, Any] = {}  # by id, which stays theirs: they live as long as the tests
_TRIALS: dict[tuple[int, str], Trial] = {}  # by that, and how the model is configured


def share(model: Any) -> Any:
    """Says of a model that its weights stay as they are."""
    _SHARED[id(model)] = model
    return model


@contextmanager
def changed(*models: Any) -> Iterator[None]:
    """While a test changes shared models, they are nobody else's."""
    taken = [_SHARED.pop(id(model)) for model in models]
    try:
        yield
    finally:
        for model in taken:
            share(model)


def trial_of(model: Any) -> Trial:
    """The one trial of a shared model; one of its own for any other, and while hooks change it."""
    if id(model) not in _SHARED or any(module._forward_hooks for module in model.modules()):
        return new_trial_of(model)
    text = model.config.get_text_config()
    key = id(model), f"{text._attn_implementation} {text.to_dict()}"
    if key not in _TRIALS:
        _TRIALS[key] = new_trial_of(model)
    return _TRIALS[key]
