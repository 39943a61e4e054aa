"""Caches that count honestly: a hit is work that was skipped; and the hit ratios of block caches on request traces."""

import importlib

_HOMES = {
    "ARC": "eviction",
    "Belady": "eviction",
    "EmbeddingCache": "embedding",
    "FIFO": "eviction",
    "HitRatios": "simulation",
    "LFU": "eviction",
    "LRU": "eviction",
    "LengthAware": "eviction",
    "Memo": "memo",
    "PrefixCache": "prefix",
    "S3FIFO": "eviction",
    "SIEVE": "eviction",
    "TokenDecodeCache": "decode",
    "hit_curve": "curves",
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
