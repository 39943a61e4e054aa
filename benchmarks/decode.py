"""One decode step that evicts, against the stock step at the same length; and prefill in chunks against stock prefill.

Two models are loaded and take turns. The stock cache is cut back by the token it gained after every step.
"""

import torch
from paired import arguments, ratio, show
from transformers import DynamicCache

import fmlab as fm

POLICIES = ("SlidingWindow", "SinkWindow", "KeyNorm", "TOVA", "H2O", "Random", "SnapKV")


def decode(stock, ours, held: int, rounds: int) -> list[dict]:
    ids = torch.randint(0, stock.config.vocab_size, (1, held), generator=torch.Generator().manual_seed(0))
    token, rows = ids[:, :1], []
    full = DynamicCache()
    stock(input_ids=ids[:, : held - 1], past_key_values=full)

    def stock_step():
        stock(input_ids=token, past_key_values=full)

    for name in POLICIES:
        policy = getattr(fm.policies, name)()
        with fm.finite(ours, policy, held - 1) as cache:
            ours(input_ids=ids[:, : held - 1], past_key_values=cache)

            def our_step(cache=cache):
                ours(input_ids=token, past_key_values=cache)

            row = ratio(stock_step, our_step, rounds, between=lambda: full.crop(-1))
        rows.append({"policy": repr(policy), "held": held, **row})
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
        prefill(stock, ours, 96 if toy else 1024, 32 if toy else 256, 24 if toy else 512, 2 if toy else 9),
        "prefill, candidate / stock",
    )


if __name__ == "__main__":
    main()
