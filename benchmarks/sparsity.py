"""Attention over chosen blocks against the best dense attention, SDPA with `is_causal=True`: speed against density.

A row is a kernel on a choice: its speed-up over dense causal attention of the same length, and the share it reaches of
the ideal, 1 / density. Random queries and keys, 9 heads of 64, block 64, float32. With --selection: what choosing costs,
in shares of the dense attention, and of what the attention then saves.
"""

import torch
from paired import options, ratio, show
from torch.nn.functional import scaled_dot_product_attention

import fmlab as fm
from fmlab.sparsity import BlockChoice, Grid

_MASK = 5 << 28  # bytes: where the mask of `dense` would take more, it is left out


def arbitrary(tokens: int, heads: int, density: float, block: int) -> BlockChoice:
    """Blocks drawn apart for every head, at about this density."""
    grid = Grid(tokens, tokens, block)
    own = int(grid.pairs[grid.own].sum())
    share = max(density * int(grid.pairs.sum()) - own, 0) / max(int(grid.pairs.sum()) - own, 1)
    drawn = torch.rand(1, heads, grid.rows, grid.columns, generator=torch.Generator().manual_seed(0)) < share
    return BlockChoice(drawn | grid.own, tokens, tokens, block)


def choices(q, k, block: int, density: float):
    """Name, choice: bands and arbitrary blocks, of about the density."""
    tokens = q.shape[2]
    window = max(int(tokens * (1 - (1 - density) ** 0.5)) - 2 * block, block)  # what a band of that density spans
    places = tuple(range(0, tokens, max(tokens // 4, 1)))
    few = max(window - 3 * block, block)
    yield "SlidingBlocks", fm.sparsity.SlidingBlocks(window).blocks(q, k, block)
    yield "Streaming", fm.sparsity.Streaming(block, window).blocks(q, k, block)
    yield "LocalGlobal", fm.sparsity.LocalGlobal(few, places).blocks(q, k, block)
    yield "BigBird", fm.sparsity.BigBird(block, few, random=4).blocks(q, k, block)
    yield "arbitrary", arbitrary(tokens, q.shape[1], density, block)


def compared(name: str, choice: BlockChoice, kernel: str, q, k, v, rounds: int) -> dict:
    """One row."""
    wanted = fm.sparsity.attention(q, k, v, choice, "gather")
    found = fm.sparsity.attention(q, k, v, choice, kernel)
    difference = float((wanted - found).abs().max())
    if not difference < 1e-5:
        raise SystemExit(f"{name}: {kernel} differs from gather by {difference}")
    row = ratio(
        lambda: scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda: fm.sparsity.attention(q, k, v, choice, kernel),
        rounds,
        warm_up=1,
    )
    density = choice.density
    return {
        "tokens": q.shape[2],
        "choice": name,
        "density": round(density, 3),
        "kernel": kernel,
        "speed-up": round(1 / row["ratio"], 2),
        "low": round(1 / row["high"], 2),
        "high": round(1 / row["low"], 2),
        "of ideal": round(density / row["ratio"], 2),
        "dense ms": row["baseline_ms"],
        "ms": row["candidate_ms"],
        "n": rounds,
    }


def selected(pattern, q, k, block: int, rounds: int) -> dict:
    """What it costs to choose."""
    choice = pattern.blocks(q, k, block)
    row = ratio(
        lambda: scaled_dot_product_attention(q, k, k, is_causal=True), lambda: pattern.blocks(q, k, block), rounds, 1
    )
    return {
        "tokens": q.shape[2],
        "pattern": repr(pattern),
        "density": round(choice.density, 3),
        "of dense": row["ratio"],
        "of what is saved": round(row["ratio"] / max(1 - choice.density, 1e-9), 3),
        "dense ms": row["baseline_ms"],
        "ms": row["candidate_ms"],
        "n": rounds,
    }


def main() -> None:
    parser = options(__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2_048, 4_096, 8_192, 16_384])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.15, 0.3])
    parser.add_argument("--kernels", nargs="+", default=["gather", "flex", "dense"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--selection", action="store_true", help="measure the choosing and not the kernels")
    given = parser.parse_args()
    heads, d, block = 9, 64, 64
    if given.toy:
        given.tokens, given.densities, given.rounds, block = [64], [0.3], 1, 8
        given.kernels = [kernel for kernel in given.kernels if kernel != "flex"]
    for tokens in given.tokens:
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, heads, tokens, d) for _ in range(3))
        if given.selection or given.toy:
            top = max(tokens // block // 10, 1)
            patterns = [
                fm.sparsity.VerticalSlash(2, 4),
                fm.sparsity.BlockTopK(top),
                fm.sparsity.QuestTopK(top),
                fm.sparsity.AntiDiagonal(0.5, min(16, block)),
            ]
            show([selected(pattern, q, k, block, given.rounds) for pattern in patterns], "choosing")
        if given.selection:
            continue
        rows = []
        for density in given.densities:
            for name, choice in choices(q, k, block, density):
                for kernel in given.kernels:
                    mask = tokens**2 * choice.distinct.shape[1] * 5  # bytes: booleans, and SDPA's own floats of them
                    if kernel == "dense" and mask > _MASK:
                        print(f"# no dense for {name} at {tokens} tokens: its mask would take {mask / 1e9:.1f} GB")
                        continue
                    rows.append(compared(name, choice, kernel, q, k, v, given.rounds))
        show(rows, f"{tokens} tokens: kernels against SDPA with is_causal=True")


if __name__ == "__main__":
    main()
