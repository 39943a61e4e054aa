"""One recorded layer as the Sparsity widget looks at it: what is worked out once, and what a choice of blocks is worth."""

import math
import threading
from typing import NamedTuple

import torch

from ..sparsity import BlockChoice, BlockedHead, Grid, Oracle, Pattern, block_mass, frontier
from ..trace import Trace

SIDE = 512  # pixels of a map at most; a finer one would not be seen
FAINTEST = 1e-5  # of the logarithmic scale of colours, which ends at 1
POINTS = 120  # of the Oracle's line
HEADS = 2  # whose attention is kept: the one that is shown, and the one before
CHOICES = 96  # that are kept: those that a dial has been through, so that its slider is quick


class Worth(NamedTuple):
    """What a choice is worth: of the head in view, and of all heads of the layer."""

    density: float
    recall: float
    error: float
    all_density: float
    all_recall: float
    least_recall: float
    oracle_recall: float
    """The mean over all heads that the Oracle keeps at the same density of all."""


class Layer:
    """The queries, keys and values of one recorded layer. Threads may share it."""

    def __init__(self, trace: Trace, at: int, block: int):
        layer = trace.layer(at)
        q, self.k, self.v = (x.float() for x in (layer.queries, layer.keys, layer.values))
        self.q = q * (trace.scaling * math.sqrt(q.shape[-1]))  # patterns and kernels scale by 1 / sqrt(d)
        self.grid = Grid(len(trace), len(trace), block)
        self.mass = block_mass(self.q, self.k, block)
        density, recall = frontier(self.mass, self.grid)
        self.line = density[0], recall[0].clamp(max=1)  # of the Oracle after each block
        self._heads: dict[int, BlockedHead] = {}
        self._choices: dict[tuple[type, str], BlockChoice] = {}  # the latest asked for is the last
        self._lock = threading.Lock()

    def oracle(self) -> list[list[float]]:
        """Some points of that line."""
        density, recall = self.line
        wanted = torch.logspace(math.log10(float(density[0])), 0, POINTS)
        at = torch.searchsorted(density, wanted).clamp(max=len(density) - 1)
        return [[float(density[i]), float(recall[i])] for i in at]

    def head(self, head: int) -> BlockedHead:
        with self._lock:
            if head not in self._heads:
                if len(self._heads) == HEADS:
                    del self._heads[next(iter(self._heads))]
                group = self.q.shape[1] // self.k.shape[1]
                self._heads[head] = BlockedHead(
                    self.q[0, head], self.k[0, head // group], self.v[0, head // group], self.grid.block
                )
            return self._heads[head]

    def choice(self, pattern: Pattern) -> BlockChoice:
        """The blocks it chooses; the Oracle reads the mass that is known already."""
        key = type(pattern), repr(pattern)  # a class may be run again, and a field need not be hashable
        known = self._choices.pop(key, None)
        if known is None:
            oracle = type(pattern) is Oracle
            known = pattern.of(self.mass, self.grid) if oracle else pattern.blocks(self.q, self.k, self.grid.block)
        while len(self._choices) >= CHOICES:
            self._choices.pop(next(iter(self._choices)), None)  # another thread may have been quicker
        self._choices[key] = known
        return known

    def worth(self, choice: BlockChoice, head: int) -> Worth:
        blocks, every = choice.blocks[0], int(self.grid.pairs.sum())
        recall = ((self.mass[0] * blocks).sum((1, 2)) / self.grid.n).clamp(max=1)
        density, best = self.line
        at = int(torch.searchsorted(density, choice.density + 1e-6)) - 1
        return Worth(
            density=int(self.grid.pairs[blocks[head]].sum()) / every,
            recall=float(recall[head]),
            error=self.head(head).error(blocks[head]),
            all_density=choice.density,
            all_recall=float(recall.mean()),
            least_recall=float(recall.min()),
            oracle_recall=float(best[max(at, 0)]),
        )

    def shades(self, head: int, queries: range, keys: range) -> tuple[dict, bytes]:
        """The map of these, a byte a pixel: 0 where nothing attends, else 1 to 255 on a logarithmic scale from FAINTEST
        to 1; and how many tokens a pixel has on a side."""
        each = max(1, -(-max(len(queries), len(keys)) // SIDE))
        mean = self.head(head).pooled(queries, keys, each)
        scale = 1 - mean.clamp(min=FAINTEST).log10() / math.log10(FAINTEST)
        shade = (1 + 254 * scale).round().nan_to_num(0).to(torch.uint8)
        about = {"i0": queries.start, "i1": queries.stop, "j0": keys.start, "j1": keys.stop, "each": each}
        return about | {"rows": shade.shape[0], "columns": shade.shape[1]}, shade.numpy().tobytes()


def check_trace(trace: Trace, block: int) -> None:
    """Raise ValueError for a trace that has no blocks to choose from, or attention of another kind."""
    if block < 1:
        raise ValueError(f"block={block}; give 1 token or more")
    if len(trace) <= block:
        raise ValueError(
            f"{len(trace)} tokens are one block of {block}, and there is nothing to choose; record a longer text, or give "
            "a smaller block"
        )
    if trace.softcap is not None:
        raise ValueError(f"{trace.model} caps its scores at {trace.softcap}, which no pattern here does; give another")
    for layer, window in zip(trace.layers, trace.windows or (), strict=False):
        if window is not None and window < len(trace):
            raise ValueError(
                f"layer {layer} sees {window} tokens only, so full causal attention is not its own; "
                "leave it out: trace.only([...])"
            )
