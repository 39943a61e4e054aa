"""A sparsity pattern inside the real model: prefill from end to end, with the share that attention has in it, and Quest's
decode step against attention over a full cache.

Prefill: the stock model (SDPA) and `fm.sparse`, in turn, on the same real text. `attention` is the share of the stock
prefill that is spent in SDPA, `bound` what Amdahl's law allows with the density (attention density times as long, all
else as long), `speed-up` what came of it. Decode: choosing pages and attending, for one layer, against SDPA over all keys
(stock: as transformers calls it; packed: the query heads of a KV head side by side), each call over another layer's
cache, as in a model, so that keys come from memory. `with update`: what a step does to its cache counted in, where the
stock cache copies all it holds. `together`: the query heads of a KV head choose the same pages.
"""

from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter

import torch
from paired import options, ratio, show
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import fmlab as fm
from fmlab.optimizations import real
from fmlab.paged import PagedCache
from fmlab.sparsity import Pattern, QuestTopK, Streaming


def share(model: PreTrainedModel, run: Callable[[], object], rounds: int) -> float:
    """The share of a stock run that is spent in attention: the median of the rounds."""
    shares, inside = [], []

    def timed(*args, **kwargs) -> object:
        start = perf_counter()
        output = sdpa_attention_forward(*args, **kwargs)
        inside.append(perf_counter() - start)
        return output

    AttentionInterface.register("sdpa_timed", timed)
    AttentionMaskInterface.register("sdpa_timed", sdpa_mask)
    model.set_attn_implementation("sdpa_timed")
    try:
        for _ in range(rounds):
            inside.clear()
            start = perf_counter()
            run()
            shares.append(sum(inside) / (perf_counter() - start))
    finally:
        model.set_attn_implementation("sdpa")
    return median(shares)


def density(model: PreTrainedModel, ids: torch.Tensor, pattern: Pattern, block: int) -> float:
    """The mean over the layers of what the pattern chooses, as the layers of the sparse run see it."""
    found = []

    class Noting(Pattern):
        def blocks(self, q, k, block=64):
            choice = pattern.blocks(q, k, block)
            found.append(choice.density)
            return choice

    with fm.sparse(model, Noting(), block, "gather"):
        model(ids, use_cache=False, logits_to_keep=1)
    return sum(found) / len(found)


def prefill(
    model: PreTrainedModel, tokens: int, patterns: list[Pattern], block: int, kernel: str, rounds: int
) -> Iterator[dict]:
    """A row for each pattern."""
    ids = real.text_ids(tokens, 0)[None] % model.config.vocab_size

    def stock() -> object:
        return model(ids, past_key_values=DynamicCache(), logits_to_keep=1)

    part = share(model, stock, min(rounds, 3))
    for pattern in patterns:

        def sparse(pattern: Pattern = pattern) -> object:
            with fm.sparse(model, pattern, block, kernel) as cache:
                return model(ids, past_key_values=cache, logits_to_keep=1)

        dense = density(model, ids, pattern, block)
        row = ratio(stock, sparse, rounds, warm_up=1)
        yield {
            "tokens": tokens,
            "pattern": repr(pattern),
            "density": round(dense, 3),
            "kernel": kernel,
            "attention": round(part, 3),
            "bound": round(1 / (1 - part * (1 - dense)), 2),
            "speed-up": round(1 / row["ratio"], 2),
            "low": round(1 / row["high"], 2),
            "high": round(1 / row["low"], 2),
            "stock ms": row["baseline_ms"],
            "ms": row["candidate_ms"],
            "n": rounds,
        }


def decode(tokens: int, heads: int, kv_heads: int, share: float, block: int, layers: int, rounds: int) -> list[dict]:
    """Rows of one length: against SDPA as transformers calls it, against the best way to call it, and with the update."""
    d = 64
    top = max(round(tokens / block * share), 1)
    cache, stock = PagedCache(layers, block), DynamicCache()
    with torch.no_grad():
        for layer in range(layers):
            keys, values = torch.randn(2, 1, kv_heads, tokens, d).unbind()
            cache.update(keys, values, layer)
            stock.update(keys, values, layer)
    q, new = torch.randn(1, heads, 1, d), torch.randn(2, 1, kv_heads, 1, d)
    turn = iter(range(10**9))

    def at() -> int:
        return next(turn) % layers

    def held() -> tuple[torch.Tensor, torch.Tensor]:
        layer = stock.layers[at()]
        return layer.keys, layer.values

    def as_stock() -> torch.Tensor:
        return scaled_dot_product_attention(q, *held(), enable_gqa=heads != kv_heads)

    def packed() -> torch.Tensor:
        return scaled_dot_product_attention(q.view(1, kv_heads, -1, d), *held())

    def quest() -> torch.Tensor:
        return cache.layers[at()].attend(q, d**-0.5, top)

    def together() -> torch.Tensor:
        return cache.layers[at()].attend(q, d**-0.5, top, together=True)

    def updated_stock() -> torch.Tensor:
        layer = stock.layers[at()]
        keys, values = layer.update(*new)
        layer.crop(-1)
        return scaled_dot_product_attention(q, keys, values, enable_gqa=heads != kv_heads)

    def updated_quest(together: bool = False) -> torch.Tensor:
        layer = cache.layers[at()]
        layer.update(*new)
        output = layer.attend(q, d**-0.5, top, together)
        layer.crop(-1)
        return output

    def updated_together() -> torch.Tensor:
        return updated_quest(together=True)

    rows, whole = [], 2 * kv_heads * tokens * d * 4
    pairs = {
        "stock": (as_stock, quest),
        "packed": (packed, quest),
        "with update": (updated_stock, updated_quest),
        "stock, together": (as_stock, together),
        "packed, together": (packed, together),
        "with update, together": (updated_stock, updated_together),
    }
    for name, (baseline, candidate) in pairs.items():
        if name.endswith("together") and heads == kv_heads:
            continue  # each chooses for itself, together or not
        with torch.no_grad():
            row = ratio(baseline, candidate, rounds, warm_up=layers)
            for layer in cache.layers:
                layer.read_nbytes = 0
            candidate()
        rows.append(
            {
                "tokens": tokens,
                "heads": f"{heads}/{kv_heads}",
                "pages": f"{top} of {-(-tokens // block)}",
                "against": name,
                "speed-up": round(1 / row["ratio"], 2),
                "low": round(1 / row["high"], 2),
                "high": round(1 / row["low"], 2),
                "full us": round(row["baseline_ms"] * 1e3),
                "us": round(row["candidate_ms"] * 1e3),
                "MB read": round(cache.read_nbytes / 1e6, 2),
                "of": round(whole / 1e6, 2),
                "n": rounds,
            }
        )
    return rows


def main() -> None:
    parser = options(__doc__.split("\n\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2_048, 4_096, 8_192])
    parser.add_argument("--cached", type=int, nargs="+", default=[2_048, 4_096, 8_192, 16_384])
    parser.add_argument("--kernel", default="gather", help="of the prefill: gather, flex, or auto to measure")
    parser.add_argument("--rounds", type=int, default=9, help="of the prefill; decode has forty times as many")
    parser.add_argument("--only", choices=["prefill", "decode"])
    given = parser.parse_args()
    block, heads, layers, rounds = 64, [(9, 3), (9, 9)], 30, given.rounds
    model = fm.tiny().model if given.toy else None
    if given.toy:
        given.tokens, given.cached, block, heads, layers, rounds = [64], [64], 8, [(6, 2)], 3, 1
    torch.manual_seed(0)
    if given.only != "decode":
        model = model or real.lm().model
        rows = []
        with torch.no_grad():
            for tokens in given.tokens:
                window = max(int(tokens * (1 - (1 - 0.14) ** 0.5)) - 2 * block, block)  # a band of that density
                patterns = [Streaming(4, window), QuestTopK(max(tokens // block // 10, 1))]
                rows += prefill(model, tokens, patterns, block, given.kernel, rounds)
        show(rows, "prefill of the model, stock SDPA and sparse")
    if given.only != "prefill":
        rows = []
        for tokens in given.cached:
            for query_heads, kv_heads in heads:
                rows += decode(tokens, query_heads, kv_heads, 0.1, block, layers, 40 * rounds)
        show(rows, "Quest's decode step, one layer")


if __name__ == "__main__":
    main()
