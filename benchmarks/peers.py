"""Do fmlab's policies keep what kvpress's presses keep? Every layer and head, on real tokens, both held to float64.

`python benchmarks/peers.py` makes an environment with kvpress in runs/peers-venv, if kvpress is not installed, and goes
on in it. A row a policy and share kept: in how many heads both keep the same entries (`equal`), differ only among entries
whose scores in float64 lie within 1e-4 of the cut (`tied`), and in how many either keeps what float64 does not
(`ours_wrong`, `theirs_wrong`); `most_apart` is the most entries of a head that one keeps and the other does not. LagKV
ranks within blocks, so one entry of every block has the rank at the cut, and all of these tie. A second table names
where kvpress departs from the method. With --toy nothing is installed: where kvpress is missing, fmlab alone is held to
float64.
"""

from collections.abc import Callable
from functools import partial

import beside
import formulas
import pandas as pd
import torch
from formulas import Layer
from paired import machine, options
from torch import Tensor
from transformers import DynamicCache

import fmlab as fm
from fmlab.policies import CUR, TOVA, ExpectedAttention, KeyDiff, KeyNorm, LagKV, ObservedAttention, SinkWindow, SnapKV

TOLERANCE = 1e-4  # of the score at the cut
SHARES = (0.25, 0.5, 0.75)


def pairs(toy: bool) -> list[tuple[fm.Policy, str, dict, Callable[[Layer], Tensor]]]:
    """Policy, the press that should be equal with its settings, and the formula of both."""
    window, lag = (8, 4) if toy else (64, 32)
    return [
        (KeyNorm(), "KnormPress", {}, formulas.key_norm),
        (KeyDiff(), "KeyDiffPress", {}, formulas.key_diff),
        (SnapKV(window), "SnapKVPress", {"window_size": window}, partial(formulas.snapkv, window=window)),
        (TOVA(), "TOVAPress", {}, formulas.tova),
        (ObservedAttention(), "ObservedAttentionPress", {}, formulas.observed_attention),
        (ExpectedAttention(), "ExpectedAttentionPress", {}, formulas.expected_attention),
        (LagKV(lag=lag), "LagKVPress", {"lag_size": lag}, partial(formulas.lagkv, lag=lag)),
        (CUR(), "CURPress", {}, formulas.cur),
        (SinkWindow(), "StreamingLLMPress", {}, formulas.streaming),
    ]


def text(lm: fm.LanguageModel, tokens: int) -> Tensor:
    """Prose that every Python ships."""
    return lm.ids(" ".join(fm.texts.prose()))[:tokens]


@torch.no_grad()
def parity(lm: fm.LanguageModel, ids: Tensor, toy: bool) -> list[dict]:
    """A row a policy and share kept."""
    n, layers = len(ids), recorded(lm, ids)
    chosen = [(pair, share) for pair in pairs(toy) for share in SHARES]
    forks = fm.prefill(lm, ids).fork([(pair[0], int(n * share)) for pair, share in chosen])
    full = keys_of(lm, ids, None) if beside.there() else None
    scores: dict[str, list[Tensor]] = {}
    rows = []
    for (pair, share), ours in zip(chosen, (forks[i].expiry > n for i in range(len(forks))), strict=True):
        policy, press, settings, formula = pair
        scores[press] = scores.get(press) or [formula(layer) for layer in layers]
        row = {"policy": repr(policy), "press": press, "kept": share, "heads": ours[..., 0].numel()}
        ours_wrong = wrong(scores[press], ours)
        if full is not None:
            theirs = kept(full, keys_of(lm, ids, make(press, 1 - share, **settings)))
            theirs_wrong, equal = wrong(scores[press], theirs), (ours == theirs).all(-1)
            row |= {"equal": int(equal.sum()), "tied": int((~equal & ~ours_wrong & ~theirs_wrong).sum())}
            row |= {"most_apart": int((ours & ~theirs).sum(-1).max()), "theirs_wrong": int(theirs_wrong.sum())}
        rows.append(row | {"ours_wrong": int(ours_wrong.sum())})
    return rows


def wrong(scores: list[Tensor], kept: Tensor) -> Tensor:
    """(layers, heads)."""
    pairs = zip(scores, kept, strict=True)
    return torch.stack([formulas.wrong(score, mine, TOLERANCE) for score, mine in pairs])


def recorded(lm: fm.LanguageModel, ids: Tensor, more: int = 512) -> list[Layer]:
    """Every layer in float64, with the angles of RoPE for the text and `more` places behind it."""
    trace = fm.record(lm, ids, dtype=torch.float32)
    turns = torch.arange(len(ids) + more)[:, None].double() * trace.rope.inv_freq.double()
    each = zip(trace.queries.double(), trace.keys.double(), trace.values.double(), strict=True)
    return [Layer(q, k, v, trace.scaling, turns) for q, k, v in each]


def make(name: str, ratio: float, **settings: object) -> object:
    """A press of kvpress."""
    import kvpress

    return getattr(kvpress, name)(compression_ratio=ratio, **settings)


def keys_of(lm: fm.LanguageModel, ids: Tensor, press: object | None, attention: str = "eager") -> list[Tensor]:
    """The keys of every layer, (heads, kept, d), after kvpress's own prefill; all keys without a press."""
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation(attention)  # ObservedAttentionPress needs eager, so all have it
    cache = DynamicCache()
    try:
        if press is None:
            lm.model(ids[None], past_key_values=cache)
        else:
            with press(lm.model):
                lm.model(ids[None], past_key_values=cache)
    finally:
        lm.model.set_attn_implementation(before)
    return [layer.keys[0] for layer in cache.layers]


def kept(full: list[Tensor], some: list[Tensor]) -> Tensor:
    """Which of the full run's keys are still there, bit for bit, (layers, heads, n)."""
    found = torch.zeros(len(full), *full[0].shape[:2], dtype=torch.bool)
    for layer, (everything, held) in enumerate(zip(full, some, strict=True)):
        for head, (rows, mine) in enumerate(zip(everything.numpy(), held.numpy(), strict=True)):
            place = {row.tobytes(): i for i, row in enumerate(rows)}
            found[layer, head, [place[row.tobytes()] for row in mine]] = True
    return found


@torch.no_grad()
def departures(lm: fm.LanguageModel, ids: Tensor) -> list[dict]:
    """Where kvpress does something else than the method says: what it keeps, what fmlab keeps, what float64 keeps."""
    return [sinks_at_decode(lm, ids), queries_of_a_chunk(lm, ids), pinned_beyond_the_budget(lm, ids)]


def sinks_at_decode(lm: fm.LanguageModel, ids: Tensor, first: int = 96, budget: int = 64, every: int = 16) -> dict:
    """StreamingLLM's sinks after each of four evictions: the press takes the first four entries for the sinks, but after
    `topk` among equal scores the entries stand in another order."""
    from kvpress import DecodingPress, StreamingLLMPress

    model, cache, theirs = lm.model, DynamicCache(), []
    press = DecodingPress(StreamingLLMPress(), compression_interval=every, target_size=budget)
    with press(model):
        model(ids[None, :first], past_key_values=cache)
        sinks = {row.tobytes() for row in cache.layers[0].keys[0, 0, :4].numpy()}
        for at in range(first, first + 4 * every):
            model(ids[None, at : at + 1], past_key_values=cache, position_ids=torch.tensor([[at]]))
            if (at - first + 1) % every == 0:
                theirs.append(len(sinks & {row.tobytes() for row in cache.layers[0].keys[0, 0].numpy()}))
    with fm.finite(model, SinkWindow(), budget) as ours:
        held = []
        for call in ids[: first + 4 * every].split([first] + 4 * [every]):
            model(call[None], past_key_values=ours)
            held.append(int(torch.isin(ours.positions(0)[0], torch.arange(4)).sum()))
    what = f"DecodingPress(StreamingLLMPress): sinks held after evictions 1 to 4, of 4, budget {budget}"
    return {"what": what, "kvpress": theirs, "fmlab": held[1:], "float64": [4] * 4}


def queries_of_a_chunk(lm: fm.LanguageModel, ids: Tensor, window: int = 64) -> dict:
    """SnapKV on the first half of the text as a chunk: the press turns the chunk's queries by the places of the last
    tokens of the whole text. Half is kept; the share of it that float64 keeps too."""
    from kvpress import ChunkPress

    half = len(ids) // 2
    press = ChunkPress(make("SnapKVPress", 0.5, window_size=window), chunk_length=half)
    theirs = kept(keys_of(lm, ids, None, "sdpa"), keys_of(lm, ids, press, "sdpa"))[..., :half]
    ours = fm.prefill(lm, ids[:half]).fork([(SnapKV(window), half // 2)])[0].expiry > half
    scores = torch.stack([formulas.snapkv(layer, window) for layer in recorded(lm, ids[:half])])
    best = torch.zeros_like(ours).scatter_(-1, scores.topk(half // 2).indices, True)
    free = scores < torch.inf  # the window is kept by all
    shares = [round(float((best & mine & free).sum() / (best & free).sum()), 3) for mine in (theirs, ours)]
    what = f"ChunkPress(SnapKVPress): share of the best {half // 2} of the first {half} tokens held, window aside"
    return {"what": what, "kvpress": shares[0], "fmlab": shares[1], "float64": 1.0}


def pinned_beyond_the_budget(lm: fm.LanguageModel, ids: Tensor, lag: int = 128) -> dict:
    """LagKV keeps sinks and all that is not ranked yet; where that is more than fits, the press drops some of it."""
    press = make("LagKVPress", 0.75, lag_size=lag)
    theirs = kept(keys_of(lm, ids, None), keys_of(lm, ids, press))
    pinned = formulas.lagkv(recorded(lm, ids)[0], lag) == torch.inf
    try:
        fm.prefill(lm, ids).fork([(LagKV(lag=lag), len(ids) // 4)])
    except fm.BudgetError as error:
        says = f"BudgetError: {str(error).partition(';')[0]}"
    what = (
        f"LagKVPress(lag_size={lag}) at {len(ids) // 4} of {len(ids)}: pinned entries held, of {int(pinned[0].sum())}"
    )
    held = sorted(set((theirs & pinned).sum(-1).flatten().tolist()))
    return {"what": what, "kvpress": held, "fmlab": says, "float64": int(pinned[0].sum())}


def main() -> None:
    toy = options(__doc__).parse_args().toy
    if not toy:
        beside.go_on_inside()
    lm = fm.tiny() if toy else fm.load()
    rows = parity(lm, text(lm, 96 if toy else 512), toy)
    print(f"# Kept by fmlab{' and kvpress' if beside.there() else ''}, {lm!r}\n# {machine()}{version()}")
    print(pd.DataFrame(rows).to_string(index=False), flush=True)
    if beside.there():
        print("\n# Where kvpress departs from the method")
        for row in departures(lm, text(lm, 512)):
            print("\n".join(f"{name:>8}  {value}" for name, value in row.items()), flush=True)
    if wrong_heads := sum(row["ours_wrong"] for row in rows):
        raise SystemExit(f"fmlab keeps what float64 does not in {wrong_heads} heads")


def version() -> str:
    if not beside.there():
        return "\n# kvpress is not installed here: fmlab is held to float64 alone"
    import importlib.metadata

    return f", kvpress {importlib.metadata.version('kvpress')}"


if __name__ == "__main__":
    main()
