"""One decode step that evicts, against the stock step at the same length; the same after a long text, against the full
cache and against the ceiling, a stock cache of as many tokens; and prefill in chunks against stock prefill.

Two models are loaded and take turns. The stock cache is cut back by the token it gained after every step.
"""

import torch
from paired import arguments, ratio, show
from transformers import DynamicCache

import fmlab as fm
from fmlab.needs import LIVE

ENDS = {"": "ratio", "_low": "low", "_high": "high"}
LONG_POLICIES = (fm.policies.SinkWindow(), fm.policies.TOVA(), fm.policies.H2O())


def decode(stock, ours, held: int, rounds: int) -> list[dict]:
    ids = torch.randint(0, stock.config.vocab_size, (1, held), generator=torch.Generator().manual_seed(0))
    token, rows = ids[:, :1], []
    full = DynamicCache()
    stock(input_ids=ids[:, : held - 1], past_key_values=full)

    def stock_step():
        stock(input_ids=token, past_key_values=full)

    for policy in fm.policies.every(LIVE):
        with fm.finite(ours, policy, held - 1) as cache:
            ours(input_ids=ids[:, : held - 1], past_key_values=cache)

            def our_step(cache=cache):
                ours(input_ids=token, past_key_values=cache)

            row = ratio(stock_step, our_step, rounds, between=lambda: full.crop(-1))
        milliseconds = {f"policy_ms{end}": (row[name] - 1) * row["baseline_ms"] for end, name in ENDS.items()}
        rounded = {name: round(value, 1) for name, value in milliseconds.items()}
        rows.append({"policy": repr(policy), "held": held, **row, **rounded})
    return rows


def long_text(stock, ours, tokens: int, held: int, rounds: int) -> list[dict]:
    """After `tokens` tokens: our step with `held` slots over the full cache's, and over the stock step at `held`."""
    ids = torch.randint(0, stock.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    token, rows = ids[:, :1], []
    full, short = DynamicCache(), DynamicCache()
    for part in ids[:, :-1].split(512, 1):
        stock(input_ids=part, past_key_values=full, logits_to_keep=1)
    stock(input_ids=ids[:, : held - 1], past_key_values=short)

    def stock_step(cache):
        return lambda: stock(input_ids=token, past_key_values=cache)

    ceiling = ratio(stock_step(full), stock_step(short), rounds, between=lambda: (full.crop(-1), short.crop(-1)))
    rows.append({"candidate": f"stock, {held} tokens", "baseline": f"stock, {tokens}", **ceiling})
    for policy in LONG_POLICIES:
        with fm.finite(ours, policy, held - 1) as cache:
            for part in ids[:, :-1].split(512, 1):
                ours(input_ids=part, past_key_values=cache, logits_to_keep=1)

            def our_step(cache=cache):
                ours(input_ids=token, past_key_values=cache)

            for name, other in ((f"stock, {tokens}", full), (f"stock, {held}", short)):
                row = ratio(stock_step(other), our_step, rounds, between=lambda other=other: other.crop(-1))
                rows.append({"candidate": f"{policy!r}, {held} slots", "baseline": name, **row})
    return rows


def prefill(stock, ours, tokens: int, chunk: int, budget: int, rounds: int) -> list[dict]:
    ids = torch.randint(0, stock.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))

    def stock_chunks():
        cache = DynamicCache()
        for part in ids.split(chunk, 1):
            stock(input_ids=part, past_key_values=cache, logits_to_keep=1)

    def stock_once():
        stock(input_ids=ids, past_key_values=DynamicCache(), logits_to_keep=1)

    def our_chunks():
        with fm.finite(ours, fm.policies.SinkWindow(), budget) as cache:
            for part in ids.split(chunk, 1):
                ours(input_ids=part, past_key_values=cache, logits_to_keep=1)

    about = {"policy": "SinkWindow(sinks=4)", "tokens": tokens, "chunk": chunk, "budget": budget}
    return [
        {**about, "stock": f"chunks of {chunk}", **ratio(stock_chunks, our_chunks, rounds, warm_up=1)},
        {**about, "stock": "one call", **ratio(stock_once, our_chunks, rounds, warm_up=1)},
    ]


@torch.no_grad()
def main() -> None:
    toy = arguments(__doc__).toy
    load = fm.tiny if toy else fm.load
    stock, ours = load().model, load().model
    show(decode(stock, ours, 64 if toy else 1024, 4 if toy else 50), "decode step, candidate / stock (1 = as fast)")
    show(
        long_text(stock, ours, *((300, 16, 4) if toy else (8000, 128, 40))),
        "decode step after a long text, candidate / baseline (the ceiling is the stock cache of as few tokens)",
    )
    show(
        prefill(stock, ours, 96 if toy else 1024, 32 if toy else 256, 24 if toy else 512, 2 if toy else 9),
        "prefill, candidate / stock",
    )


if __name__ == "__main__":
    main()
