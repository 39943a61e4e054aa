"""A pattern measured on given queries, keys and values: its density, what it loses, and its speed against dense attention."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..intervals import Interval, bootstrap
from ..sparsity import Pattern, attention, mass_recall, plan
from .clock import Cancelled, in_turn, speedup

CHOOSINGS = 3


@dataclass(frozen=True)
class SparseAttention:
    """What a pattern is worth on one layer: the rows of `fm.figures.sparsity_pareto` come of it."""

    pattern: Pattern
    tokens: int
    density: float
    mass_recall: Interval
    """The mean over the heads; the interval draws heads."""
    output_error: Interval
    kernel: str
    why: str
    speedup: Interval
    """Dense causal attention over attention by this kernel, the choice being made: the median of rounds' ratios."""
    dense_seconds: float
    sparse_seconds: float
    choosing_seconds: float
    """What choosing the blocks takes, which comes on top."""
    unrest: str | None

    def row(self) -> dict:
        """Flat, with the names of the columns."""
        row = {"pattern": type(self.pattern).__name__, "setting": repr(self.pattern)}
        for name in ("mass_recall", "output_error", "speedup"):
            value = getattr(self, name)
            row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high, f"{name}_n": value.n}
        rest = ("tokens", "density", "kernel", "why", "dense_seconds", "sparse_seconds", "choosing_seconds", "unrest")
        return row | {name: getattr(self, name) for name in rest}


@torch.no_grad()
def measure_pattern(
    pattern: Pattern,
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch kv_heads n d"],
    v: Float[Tensor, "batch kv_heads n d"],
    block: int = 64,
    kernel: str = "auto",
    rounds: int = 12,
    seconds: float = 10.0,
    go_on: Callable[[str, int], bool] = lambda doing, done: True,
) -> SparseAttention:
    """Choose, find the kernel, and time it in turn with `scaled_dot_product_attention(is_causal=True)`.

    `rounds` and `seconds` as of `in_turn`. `go_on` hears what is being done and how many rounds are, and where it says
    False, Cancelled is raised. Raises as `fm.sparsity.attention` does.
    """

    def say(doing: str, done: int = 0) -> bool:
        if not go_on(doing, done):
            raise Cancelled(f"cancelled: {doing}")
        return True

    def dense() -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])

    def sparse() -> Tensor:
        return attention(q, k, v, choice, kernel)

    took = []
    for _ in range(CHOOSINGS):
        say("choosing the blocks")
        start = perf_counter()
        choice = pattern.blocks(q, k, block)
        took.append(perf_counter() - start)
    say("what the choice loses")
    recall, wanted = mass_recall(q, k, choice), dense()
    why = "the kernel that was asked for"
    if kernel == "auto":
        say("which kernel is fastest here (one may be compiled first)")
        found = plan(q, k, v, choice)
        kernel, why = found.kernel, str(found)
    error = (sparse() - wanted).flatten(2).norm(dim=-1) / wanted.flatten(2).norm(dim=-1)
    times = in_turn(dense, sparse, rounds, seconds, lambda done: say(f"{kernel} against dense, in turn", done))
    ratio = speedup(times)
    return SparseAttention(
        pattern=pattern,
        tokens=q.shape[2],
        density=choice.density,
        mass_recall=bootstrap(recall.flatten().tolist()),
        output_error=bootstrap(error.flatten().tolist()),
        kernel=kernel,
        why=why,
        speedup=Interval(ratio.speedup, ratio.low, ratio.high, ratio.n, ratio.n),
        dense_seconds=float(median(times.baseline)),
        sparse_seconds=float(median(times.optimised)),
        choosing_seconds=median(took),
        unrest=times.unrest(),
    )
