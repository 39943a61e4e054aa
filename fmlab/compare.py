"""One text under every policy and budget: what is held, what is still known, what it costs; a row a cell."""

import base64
import json
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache

from . import metrics
from .core import BudgetError, Policy, check_budget
from .intervals import bootstrap
from .language import LanguageModel
from .live import finite
from .passage import Passage
from .provenance import device
from .record import record
from .sweep import sweep
from .texts import THIRDS, Planted
from .trace import Trace

FULL = "full cache"
RUN_TOKENS = 8  # neighbouring tokens that the bootstrap draws together
LEAST_RUNS = 6  # fewer tell nothing of the spread
TRACE_NBYTES = 1 << 28  # of a recording; a longer text has fewer of its layers recorded
MAP_LAYERS = 4
ANSWER_TOKENS = 24
FIGURES = (
    *THIRDS,
    "facts_present", "answered", "questions", "query_aware",
    "mass_recall", "mass_recall_p10",
    "nll_delta", "nll_delta_low", "nll_delta_high", "n", "clusters", "nll",
    "nbytes", "overhead_nbytes", "peak_nbytes", "decode_milliseconds", "prefill_seconds",
)  # fmt: skip

Row = dict[str, Any]


class Cell(NamedTuple):
    """What is known of one policy and budget: its row, and the expiry that a map draws (None where it was refused)."""

    row: Row
    expiry: Int[Tensor, "layers kv_heads tokens"] | None
    layers: tuple[int, ...]
    """Those of the expiry."""


def compare(
    lm: LanguageModel,
    passage: Passage,
    policies: Sequence[Policy],
    budgets: Sequence[int],
    chunk: int | None = None,
    rows: str | Path | None = None,
) -> Iterator[Cell]:
    """Run the model over the passage with the full cache, then under each policy and budget, in the order given.

    The context is one call of the model (or calls of `chunk` tokens), each followed by an eviction. The facts are asked
    for from copies of what was kept. Then the tail is read in calls of one token, each predicting the next. With `rows`
    every finished cell is kept in that SQLite file and not computed again. A cell whose policy pins more than the
    budget holds is a row with the message in `refused`. Raises ValueError as `check_grid`.
    """
    check_grid(policies, budgets, chunk)
    attention = TailAttention(lm, passage)
    config = lm.model.config.get_text_config(decoder=True)
    about = {
        "model": lm.name,
        "model_source": lm.source,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "device": device(),
        "text": passage.title,
        "text_sha256": passage.sha256,
        "context_tokens": len(passage.context_ids),
        "scored_tokens": passage.scored,
        "facts": len(passage.planted),
        "seed": passage.seed,
        "chunk": chunk,
        "recall_layers": len(attention.layers),
        "position_limit": getattr(config, "max_position_embeddings", None),
    }

    def run(policy: Policy | None, budget: int | None, chunk: int | None, **_: Any) -> Row:
        try:
            return measure(lm, passage, policy, budget, chunk, attention)
        except BudgetError as error:
            return {"refused": str(error)}

    full: Row | None = None
    for policy, budget in [(None, None), *((policy, budget) for policy in policies for budget in budgets)]:
        table = sweep(run, rows, progress=False, policy=policy, budget=budget, **about)
        found = table.assign(started=table["started"].map(pd.Timestamp.isoformat)).iloc[0].to_dict()
        full = full or found
        yield _cell(found, full, passage, map_layers(config.num_hidden_layers))


def check_grid(policies: Sequence[Policy], budgets: Sequence[int], chunk: int | None = None) -> None:
    """Raise ValueError for a budget or chunk below 1, for values given twice, and where there is nothing to compare."""
    for budget in budgets:
        check_budget(budget)
    for name, values in {"policy": [repr(policy) for policy in policies], "budget": list(budgets)}.items():
        if not values:
            raise ValueError(f"no {name}; give at least one")
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{name} {twice[0]} is given twice; give every {name} once")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}; give at least 1")


@torch.no_grad()
def measure(
    lm: LanguageModel,
    passage: Passage,
    policy: Policy | None,
    budget: int | None,
    chunk: int | None,
    attention: "TailAttention",
) -> Row:
    """The figures of one policy and budget (None: the stock full cache), as plain numbers and text."""
    with _memory(lm, policy, budget) as cache:
        start = time.perf_counter()
        for part in passage.context_ids.split(chunk or len(passage.context_ids)):
            lm.model(input_ids=part[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        prefill_seconds = time.perf_counter() - start
        held = _expiry(cache)
        said = [_answer(lm, passage, planted, cache) for planted in passage.planted]
        losses, step_seconds = _score_tail(lm, passage, cache)
        expiry = _expiry(cache)
    facts = [
        {
            "depth": planted.depth,
            "third": planted.third,
            "present": float(metrics.present(held, planted.start, planted.stop).mean()),
            "answered": re.search(rf"\b{re.escape(planted.fact.answer)}\b", words) is not None,
            "question": planted.fact.question,
            "said": words,
        }
        for planted, words in zip(passage.planted, said, strict=True)
    ]
    mean, p10 = attention.recall(expiry)
    thirds = (float(third.mean()) for third in metrics.thirds(held))
    return {
        **dict(zip(THIRDS, thirds, strict=True)),
        "facts_present": sum(fact["present"] for fact in facts) / len(facts) if facts else None,
        "answered": sum(fact["answered"] for fact in facts) if facts else None,
        "questions": len(facts),
        "query_aware": False,
        "mass_recall": mean,
        "mass_recall_p10": p10,
        "nll": sum(losses) / len(losses),
        **_bytes(cache),
        "decode_milliseconds": median(step_seconds) * 1e3,
        "prefill_seconds": prefill_seconds,
        "losses": json.dumps(losses),
        "fact_results": json.dumps(facts),
        "map": _packed(expiry[list(map_layers(len(expiry)))]),
    }


class TailAttention:
    """How the full model's attention of the tail's queries lies on what was read, so that any expiry can be weighed."""

    def __init__(self, lm: LanguageModel, passage: Passage):
        self._lm, self._passage = lm, passage
        config = lm.model.config.get_text_config(decoder=True)
        layers, query_heads = config.num_hidden_layers, config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or query_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // query_heads
        layer_nbytes = len(passage.read) * (query_heads + 2 * kv_heads) * size * 2
        every = -(-layers * layer_nbytes // TRACE_NBYTES)
        self.layers = list(range(0, layers, every))
        """Every layer where the recording fits TRACE_NBYTES, else every k-th."""

    @cached_property
    def weights(self) -> Float[Tensor, "heads queries tokens"]:
        """Softmax weights of the tail's queries, mean over the query heads of a KV head; one recorded pass."""
        ids = torch.cat([self._passage.context_ids, self._passage.tail_ids[:-1]])
        trace: Trace = record(self._lm, ids, layers=self.layers)
        view, first = trace.view(), len(self._passage.context_ids)
        parts = []
        for start, stop in view.blocks():
            if stop > first:
                parts.append(view.rows(max(start, first), stop).mean(1))
        return torch.cat(parts, 1)

    def recall(self, expiry: Int[Tensor, "layers kv_heads tokens"]) -> tuple[float, float]:
        """Attention-mass recall of the tail's queries: the mean, and what nine of ten (query, KV head) pairs exceed."""
        rows = expiry[self.layers].flatten(0, 1)
        first = len(self._passage.context_ids)
        queries = torch.arange(first, rows.shape[1])
        gone = queries[None, :, None] >= rows[:, None, :]
        lost = self.weights.masked_fill(~gone, 0).sum(-1, dtype=torch.float64)
        return float(1 - lost.mean()), float(1 - lost.flatten().quantile(0.9))


def map_layers(layers: int) -> tuple[int, ...]:
    """The layers that a map draws: four, evenly spaced, the first and the last among them."""
    count = min(MAP_LAYERS, layers)
    return tuple(sorted({round(i * (layers - 1) / max(1, count - 1)) for i in range(count)}))


def _cell(found: Row, full: Row, passage: Passage, layers: tuple[int, ...]) -> Cell:
    """The public row of what the store holds, with the difference to the full cache."""
    row = dict.fromkeys(("policy", "budget", "refused", *FIGURES))
    row |= {name: _plain(value) for name, value in found.items()}
    losses, facts, packed = (row.pop(name, None) for name in ("losses", "fact_results", "map"))
    row["policy"] = row["policy"] or FULL
    row["fact_results"] = json.loads(facts) if facts else []
    if losses is None:
        return Cell(row, None, layers)
    row |= nll_delta(json.loads(losses), json.loads(full["losses"]), len(passage.context_ids), row["budget"])
    return Cell(row, _unpacked(packed, len(layers), len(passage.read)), layers)


def _plain(value: Any) -> Any:
    """A value of a data frame as Python's own; NaN, which pandas writes for None, as None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and value != value else value


def nll_delta(losses: list[float], full: list[float], context: int, budget: int | None) -> Row:
    """Mean over the scored tokens predicted after the first eviction of the nats lost against the full cache.

    Its 95% interval is a paired bootstrap over runs of RUN_TOKENS neighbouring tokens, and empty where there are fewer
    than LEAST_RUNS. All is empty where nothing was evicted, and zero for the full cache itself.
    """
    skip = 0 if budget is None else max(0, budget + 1 - context)
    differences = [mine - theirs for mine, theirs in zip(losses, full, strict=True)][skip:]
    if not differences:
        return {"n": 0, "clusters": 0}
    interval = bootstrap(differences, [(skip + i) // RUN_TOKENS for i in range(len(differences))])
    low, high = (None, None) if interval.clusters < LEAST_RUNS else (interval.low, interval.high)
    figures = {"n": interval.n, "clusters": interval.clusters, "nll_delta": interval.mean}
    return figures | {"nll_delta_low": low, "nll_delta_high": high}


@contextmanager
def _memory(lm: LanguageModel, policy: Policy | None, budget: int | None) -> Iterator[Cache]:
    if policy is None:
        yield DynamicCache(config=lm.model.config)
        return
    with finite(lm.model, policy, budget) as cache:
        yield cache


def _answer(lm: LanguageModel, passage: Passage, planted: Planted, cache: Cache) -> str:
    """What the model says, greedily, to the question of a fact, from a copy of the cache."""
    _, question = lm.prompt(passage.sample.context, planted.fact.question)
    ids = torch.cat([passage.context_ids, question])
    said = lm.model.generate(
        ids[None],
        attention_mask=torch.ones_like(ids[None]),
        past_key_values=_copy(cache),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
    )
    return lm.tokenizer.decode(said[0, len(ids) :], skip_special_tokens=True).strip()


def _score_tail(lm: LanguageModel, passage: Passage, cache: Cache) -> tuple[list[float], list[float]]:
    """Nats of each scored token, and the seconds of each call: one token in, its prediction read."""
    losses, seconds = [], []
    for token, following in zip(passage.tail_ids[:-1], passage.tail_ids[1:].tolist(), strict=True):
        start = time.perf_counter()
        logits = lm.model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).logits[0, -1]
        losses.append(-float(logits.float().log_softmax(-1)[following]))
        seconds.append(time.perf_counter() - start)
    return losses, seconds


def _copy(cache: Cache) -> Cache:
    return cache.copy() if hasattr(cache, "copy") else deepcopy(cache)


def _expiry(cache: Cache) -> Int[Tensor, "layers kv_heads tokens"]:
    if hasattr(cache, "expiry"):
        return cache.expiry.cpu()
    seen, kv_heads = cache.get_seq_length(), [layer.keys.shape[1] for layer in cache.layers]
    return torch.full((len(kv_heads), kv_heads[0], seen), seen + 1)


def _bytes(cache: Cache) -> Row:
    """Bytes held after the last token; of the stock cache no more is known than its keys and values."""
    if hasattr(cache, "nbytes"):
        return {"nbytes": cache.nbytes, "overhead_nbytes": cache.overhead_nbytes, "peak_nbytes": cache.peak_nbytes}
    nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return {"nbytes": nbytes, "overhead_nbytes": 0, "peak_nbytes": None}


def _packed(expiry: Int[Tensor, "layers kv_heads tokens"]) -> str:
    """An expiry as text, for the store."""
    return base64.b64encode(zlib.compress(expiry.int().numpy().tobytes())).decode()


def _unpacked(packed: str, layers: int, tokens: int) -> Int[Tensor, "layers kv_heads tokens"]:
    raw = bytearray(zlib.decompress(base64.b64decode(packed)))
    return torch.frombuffer(raw, dtype=torch.int32).view(layers, -1, tokens).long()
