"""Caches that count honestly: a hit is work that was skipped; and the hit ratios of block caches on request traces."""

import importlib

_HOMES = {
    "ARC": "eviction",
    "Accesses": "requests",
    "Belady": "eviction",
    "ChatTraffic": "chats",
    "EmbeddingCache": "embedding",
    "FIFO": "eviction",
    "HitCurve": "curves",
    "HitRatios": "simulation",
    "LFU": "eviction",
    "LRU": "eviction",
    "LengthAware": "eviction",
    "Memo": "memo",
    "Prefix": "prefix",
    "PrefixCache": "prefix",
    "S3FIFO": "eviction",
    "SIEVE": "eviction",
    "TokenDecodeCache": "decode",
    "accesses": "requests",
    "block_hashes": "prefix",
    "coarser": "requests",
    "hit_curve": "curves",
    "hit_rows": "curves",
    "load_requests": "requests",
    "simulate": "simulation",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; dir({__name__}) lists its names")


def __dir__() -> list[str]:
    return sorted({*_HOMES, "__doc__"})
