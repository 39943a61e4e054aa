"""What a model loses by attending sparsely: output error, attention mass, likelihood and planted facts against density.

Writes data/sparsity_fidelity.csv.gz, one row a text and pattern: the density of its choices; over all layers and heads of the
model on that text, the share of the attention's mass that they hold and the relative error of the attention's output, each
layer given what the full model gives it; the negative log-likelihood of the text's second half, less that of dense
attention; and which share of planted facts the model tells when the context and then the question were read sparsely, each
in a call of its own, and the answer is spoken with dense attention. An interrupted run goes on where it stopped.
"""

import re
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from paired import arguments, machine
from torch.nn.functional import scaled_dot_product_attention as dense_attention
from transformers import DynamicCache

import fmlab as fm
from fmlab.intervals import bootstrap
from fmlab.reading import read, read_first, speak
from fmlab.sparsity import (
    AntiDiagonal,
    BigBird,
    BlockTopK,
    Dilated,
    LocalGlobal,
    Oracle,
    Pattern,
    QuestTopK,
    SlidingBlocks,
    Streaming,
    Strided,
    VerticalSlash,
    block_mass,
)
from fmlab.sparsity.pattern import rescaled

ROOT = Path(__file__).resolve().parents[1]
FACTS = 3
BLOCK = 64
FIGURES = ["density", "mass_recall", "output_error", "nll_delta", "answered"]
# Of 2,048 tokens, 32 blocks of 64: from about a tenth of the causal pairs to about a half.
PATTERNS: tuple[Pattern, ...] = (
    *(SlidingBlocks(window) for window in (64, 192, 576)),
    *(Streaming(64, window) for window in (64, 192, 512)),
    *(LocalGlobal(window, tuple(range(0, 2_048, apart))) for window, apart in ((64, 1_024), (128, 512), (384, 512))),
    *(BigBird(64, window, random) for window, random in ((64, 1), (128, 3), (256, 6))),
    *(Strided(stride) for stride in (64, 256, 640)),
    *(Dilated(window, dilation) for window, dilation in ((2, 1_024), (4, 512), (8, 192))),
    *(VerticalSlash(vertical, slash) for vertical, slash in ((2, 2), (8, 8), (32, 32))),
    *(BlockTopK(top) for top in (2, 5, 12)),
    *(QuestTopK(top) for top in (2, 5, 12)),
    *(AntiDiagonal(threshold) for threshold in (0.5, 0.8, 0.95)),
    *(Oracle(density) for density in (0.1, 0.25, 0.5)),
)


@lru_cache(maxsize=1)
def model(tiny: bool) -> fm.LanguageModel:
    return fm.tiny() if tiny else fm.load()


@lru_cache(maxsize=1)
def text(tokens: int, seed: int, tiny: bool) -> torch.Tensor:
    return model(tiny).ids(" ".join(fm.texts.haystack(tokens, seed)))[:tokens]


@lru_cache(maxsize=1)
def recorded(tokens: int, seed: int, tiny: bool) -> fm.Trace:
    return fm.record(model(tiny), text(tokens, seed, tiny))


def layers_of(trace: fm.Trace) -> Iterator[tuple[torch.Tensor, ...]]:
    """Queries, keys and values of each layer, as a batch of one."""
    for layer in zip(trace.queries, trace.keys, trace.values, strict=True):
        yield tuple(x[None].float() for x in layer)


@lru_cache(maxsize=1)
def full(tokens: int, seed: int, block: int, tiny: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each layer the attention mass of every block and what dense attention gives: all patterns are held against them."""
    trace = recorded(tokens, seed, tiny)
    return [
        (
            block_mass(q, k, block, trace.scaling),
            dense_attention(q, k, v, is_causal=True, scale=trace.scaling, enable_gqa=True),
        )
        for q, k, v in layers_of(trace)
    ]


@lru_cache(maxsize=1)
def nats(tokens: int, seed: int, tiny: bool) -> torch.Tensor:
    """Of the second half, by dense attention."""
    return spoken_nats(model(tiny), text(tokens, seed, tiny))


@torch.no_grad()
def spoken_nats(lm: fm.LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    logits = lm.model(input_ids=ids[None], use_cache=False).logits[0, len(ids) // 2 : -1].float()
    return torch.nn.functional.cross_entropy(logits, ids[len(ids) // 2 + 1 :], reduction="none")


def cell(seed: int, pattern: Pattern | None, tokens: int, block: int, tiny: bool) -> dict[str, object]:
    """One text under one pattern; None is dense attention."""
    lm = model(tiny)
    row = {"answered": told(lm, seed, pattern, tokens, block)}
    if pattern is None:
        return row | {"density": 1.0, "mass_recall": 1.0, "output_error": 0.0, "nll_delta": 0.0}
    with fm.sparse(lm.model, pattern, block, kernel="gather"):
        sparse = spoken_nats(lm, text(tokens, seed, tiny))
    row["nll_delta"] = float((sparse - nats(tokens, seed, tiny)).mean())
    return row | on_recorded(pattern, tokens, seed, block, tiny)


@torch.no_grad()
def on_recorded(pattern: Pattern, tokens: int, seed: int, block: int, tiny: bool) -> dict[str, float]:
    """Means over layers and heads."""
    trace, found = recorded(tokens, seed, tiny), []
    for (q, k, v), (mass, dense) in zip(layers_of(trace), full(tokens, seed, block, tiny), strict=True):
        choice = pattern.blocks(rescaled(q, trace.scaling), k, block)
        sparse = fm.sparsity.attention(q, k, v, choice, "gather", trace.scaling)
        kept, off = (mass * choice.blocks).sum((-2, -1)) / tokens, (sparse - dense).norm(dim=(2, 3))
        found.append((choice.density, float(kept.mean()), float((off / dense.norm(dim=(2, 3))).mean())))
    return dict(zip(("density", "mass_recall", "output_error"), pd.DataFrame(found).mean(), strict=True))


@torch.no_grad()
def told(lm: fm.LanguageModel, seed: int, pattern: Pattern | None, tokens: int, block: int) -> float:
    """The share of planted facts that the model tells."""
    sample = fm.tasks.recall(lm, tokens, FACTS, seed)
    way = nullcontext() if pattern is None else fm.sparse(lm.model, pattern, block, kernel="gather")
    prompts = [lm.prompt(sample.context, planted.fact.question) for planted in sample.planted]
    heard = []
    with way:
        whole, *_ = read_first(lm, DynamicCache(config=lm.model.config), prompts[0][0], None)
        for _, question in prompts:
            cache = deepcopy(whole)
            heard.append((cache, read(lm, cache, question)))
    replies = [speak(lm, *each, 16) for each in heard]
    right = sum(
        re.search(rf"\b{re.escape(planted.fact.answer)}\b", reply) is not None
        for planted, reply in zip(sample.planted, replies, strict=True)
    )
    return right / len(sample.planted)


def paired(table: pd.DataFrame) -> pd.DataFrame:
    """A line a pattern: means over the texts with 95% intervals that draw texts."""
    lines = []
    for pattern, rows in table.groupby("pattern", sort=False, dropna=False):
        line = {"pattern": pattern, "n": len(rows)}
        for figure in FIGURES:
            mean = bootstrap(rows[figure].to_numpy(dtype=float))
            line[figure] = f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
        lines.append(line)
    return pd.DataFrame(lines)


def main() -> None:
    toy = arguments(__doc__).toy
    tokens, block, texts, patterns = (
        (700, 64, 1, (Streaming(64, 64), Oracle(0.3))) if toy else (2_048, BLOCK, 4, PATTERNS)
    )
    out = None if toy else ROOT / "runs" / "sparsity.sqlite"
    table = fm.sweep(cell, seed=range(texts), pattern=[None, *patterns], tokens=tokens, block=block, tiny=toy, out=out)
    table["pattern"] = table.pattern.fillna("dense attention")
    if not toy:
        table.to_csv(ROOT / "data" / "sparsity_fidelity.csv.gz", index=False, float_format="%.5g")
    print(f"# {machine()}")
    print(paired(table).to_string(index=False))


if __name__ == "__main__":
    main()
