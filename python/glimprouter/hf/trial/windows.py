"""What a query may see (windows, chunks, selections), made so little that a short text is more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NARROW = 8  # tokens
# By these names configurations hold what a query may see, in tokens or blocks, and how narrow it is
# made. Numbers of layers, such as max_window_layers, are others.
_NAMES = {
    "sliding_window": NARROW,
    "sliding_window_size": NARROW,
    "attention_chunk_size": NARROW,
    "attention_window_size": NARROW,
    "local_attention_window": NARROW,
    "local_window_size": NARROW,
    "window_size": NARROW,
    "floor_scale": NARROW,  # tokens behind which queries are made larger (Llama 4)
    "index_topk": NARROW,
    "index_block_size": NARROW // 4,
    "index_topk_blocks": 2,
    "indexer_budget": NARROW,
}


def _value(holder: Any, name: str) -> int | None:
    """An attribute, if it is a number of tokens."""
    try:
        value = getattr(holder, name, None)
    except Exception:  # a configuration whose layers differ refuses to name one value
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def widest_window(config: Any) -> int:
    """The widest limit of what a query sees that a configuration names, in tokens; 0 for none."""
    widest = 0
    context = getattr(config, "max_position_embeddings", None)
    for name in {*_NAMES, *vars(config)}:
        value = _value(config, name)
        if value is None or "layers" in name:
            continue
        if not any(part in name for part in ("window", "chunk", "index_topk", "indexer_budget")):
            continue
        if not isinstance(context, int) or value < context:
            widest = max(widest, value)
    return widest


@contextmanager
def narrowed(model: Any) -> Iterator[None]:
    """Every window, chunk and selection that is wider is :data:`NARROW` tokens wide meanwhile.

    The configuration and the layers each hold their own copy, and masks and attention read one or
    the other: those with the same value are changed together.
    """
    config = model.config.get_text_config()
    holders = [config, *model.modules()]
    before: list[tuple[Any, str, int]] = []
    for name, narrow in _NAMES.items():
        own = _value(config, name)
        for holder in holders:
            value = _value(holder, name) if name in vars(holder) else None
            if value is not None and value > narrow and (holder is config or value == own):
                before.append((holder, name, value))
    try:
        for holder, name, _ in before:
            setattr(holder, name, _NAMES[name])
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)
