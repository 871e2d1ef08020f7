"""Paged keys and values of several models: one arena, one list of generated tokens a sequence."""

from __future__ import annotations

from glimprouter._C import KvCache, KvLayout, OutOfPages, PagePool, RaggedBatch

__all__ = ["KvCache", "KvLayout", "OutOfPages", "PagePool", "RaggedBatch"]
