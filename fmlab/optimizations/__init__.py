"""What each optimisation is really worth: pairs of a plain and a fast way, proved equal and timed in turn."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "ALL": "catalogue",
        "Cancelled": "clock",
        "Comparison": "comparison",
        "Floor": "pair",
        "NotEquivalent": "equivalence",
        "Pair": "pair",
        "Refused": "outcome",
        "SideFailed": "equivalence",
        "SparseAttention": "sparse_attention",
        "Verdict": "verdict",
        "attempt": "outcome",
        "compare": "comparison",
        "measure_pattern": "sparse_attention",
        "table": "outcome",
    },
)
