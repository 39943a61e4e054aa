"""Caches that count honestly: a hit is work that was skipped; and the hit ratios of block caches on request traces."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ARC": "eviction",
        "Accesses": "requests",
        "Belady": "eviction",
        "ChatTraffic": "chats",
        "EmbeddingCache": "embedding",
        "Eviction": "eviction",
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
    },
)
