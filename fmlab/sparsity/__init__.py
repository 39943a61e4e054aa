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
        "NoCompiler": "flex",
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
        "block_mass": "oracle",
        "block_mask": "forms",
        "bsr": "forms",
        "choice_of": "memory",
        "coo": "forms",
        "csr": "forms",
        "longformer": "forms",
        "mask_mod": "forms",
        "mask_mod_of": "memory",
        "plan": "dispatch",
    },
)
