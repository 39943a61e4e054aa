"""Attention sparsity: patterns that choose blocks of keys, and kernels that read no others."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "AntiDiagonal": "dynamic",
        "BigBird": "static",
        "BlockChoice": "choice",
        "BlockTopK": "dynamic",
        "Dilated": "static",
        "Grid": "grid",
        "Intersection": "pattern",
        "LocalGlobal": "static",
        "Oracle": "oracle",
        "Pattern": "pattern",
        "Plan": "dispatch",
        "QuestTopK": "dynamic",
        "SlidingBlocks": "static",
        "Streaming": "static",
        "Strided": "static",
        "Union": "pattern",
        "VerticalSlash": "dynamic",
        "attention": "dispatch",
        "plan": "dispatch",
    },
)
