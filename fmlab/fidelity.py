"""How well a replay foretells the live run: the same policies and budgets both ways, on the same text, layer by layer."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .core import Policy
from .forks import prefill
from .language import LanguageModel
from .metrics import Received
from .record import record
from .rerun import replay
from .slots import split


@torch.no_grad()
def fidelity(
    lm: LanguageModel,
    text: str | Sequence[int] | Tensor,
    cells: Sequence[tuple[Policy, int]],
    first: int,
    chunk: int = 1,
    progress: Callable[[int], None] | None = None,
    query_aware: bool = False,
) -> list[dict]:
    """One row a cell and layer of a text: the first `first` tokens are one call, the rest calls of `chunk` tokens, live
    for all cells as one batch of forks, and replayed from the record of the full model.

    `live` and `replayed` are mass recalls over the queries after the first call (those of the first call see everything),
    mean over the KV heads: of the full model's attention, what falls on entries that the live run, or the replay, still
    held. `overlap` is the mean share of the entries held live that are held in
    the replay too, over the ends of all calls after the first. `nll_delta`, the same for all layers of a cell, is how
    many nats a token the live run lost against the full cache, over the tokens after the first call. `query_aware` says
    that a question is part of the text.
    Raises ValueError for a text of fewer than `first` + 2 tokens.
    """
    ids = lm.ids(text)
    if len(ids) < first + 2:
        raise ValueError(f"{len(ids)} tokens with a first call of {first}; give at least {first + 2}")
    full = len(ids) + 1
    sizes = (first, *[chunk] * (-(-(len(ids) - first) // chunk)))
    trace = record(lm, ids, dtype=torch.float32, query_aware=query_aware)
    forks = prefill(lm, ids[:first], query_aware).fork([*cells, (cells[0][0], full)])
    losses, done = [], first
    for logits, after in forks.read(ids[first:], chunk):  # noqa: B007  the last `after` has read it all
        targets = ids[done + 1 : done + 1 + logits.shape[1]]
        losses.append(_nats(logits[:, : len(targets)], targets))
        done += logits.shape[1]
        if progress is not None:
            progress(done)
    delta = torch.cat(losses, 1).mean(1)
    rows, received = [], Received(trace)
    for i, (policy, budget) in enumerate(cells):
        live, replayed = after[i].expiry, replay(trace, policy, budget, prefill=sizes)
        whole = (received.mass_recall(each).mean(1) for each in (live, replayed))
        both = ((mean * len(ids) - first) / (len(ids) - first) for mean in whole)
        held = _overlap(live, replayed, list(accumulate(split(len(ids), sizes))))
        label = {
            "policy": repr(policy),
            "budget": budget,
            "query_aware": query_aware,
            "nll_delta": float(delta[i] - delta[-1]),
        }
        for layer, mine, theirs, share in zip(trace.layers, *both, held, strict=True):
            figures = {"live": float(mine), "replayed": float(theirs), "overlap": float(share)}
            rows.append(label | {"layer": layer} | figures)
    return rows


def _nats(logits: Float[Tensor, "cells n vocabulary"], targets: Int[Tensor, " n"]) -> Float[Tensor, "cells n"]:
    return -logits.float().log_softmax(-1).gather(-1, targets.expand(len(logits), -1)[..., None])[..., 0]


def _overlap(live: Tensor, replayed: Tensor, ends: list[int]) -> Float[Tensor, " layers"]:
    """Of what is held live after each call, the share that is held in the replay."""
    shares = []
    for end in ends[1:]:
        mine, theirs = live[..., :end] > end, replayed[..., :end] > end
        shares.append((mine & theirs).sum(-1) / mine.sum(-1))
    return torch.stack(shares).double().mean((0, 2))
