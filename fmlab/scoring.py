"""How well a question about a text is answered from what a policy kept: exact match, and the answer's likelihood."""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from . import metrics
from .core import Allocation, Policy
from .language import LanguageModel
from .reading import check_counts, expiry_of, losses, memory, nbytes_of, read, read_first, speak

Span = tuple[int, int]  # the first token and the one after the last, counted from the beginning of the context's ids


@dataclass(frozen=True, eq=False)
class Sample:
    """A long text, a question about it, what should be answered, and where that is said."""

    family: str
    tokens: int
    """The length asked for; `context_ids` has at most so many."""
    seed: int
    context: str
    context_ids: Int[Tensor, " context"]
    question: str
    opening: str
    """How the answer begins; the model goes on from there, as it does in RULER."""
    answers: tuple[str, ...]
    evidence: tuple[tuple[Span, ...], ...]
    """For each answer the tokens that it rests on: one span or several."""

    @property
    def gold(self) -> str:
        """The right answer in words, with the blank after the opening."""
        return f" {', '.join(self.answers)}"


@dataclass(frozen=True, eq=False)
class Score:
    """What the model made of a sample's question."""

    sample: Sample
    policy: Policy | None
    budget: int | Allocation | None
    query_aware: bool
    """Whether the question was read before the eviction. Never compare the two in one column."""
    turn: int
    """0 for the first question that this cache was asked."""
    said: str
    matched: tuple[bool, ...]
    """Of each expected answer: whether it stands in what was said."""
    losses: Float[Tensor, " tokens"]
    """Nats of each token of the right answer, were it said instead of the model's own."""
    held: Float[Tensor, "answers layers kv_heads"]
    """Share of each answer's evidence that each head still held when the question was answered from."""
    nbytes: int

    @property
    def answered(self) -> float:
        """Exact match: the share of the expected answers that stand in what was said, as words (RULER's measure)."""
        return sum(self.matched) / len(self.matched)

    @property
    def answer_nll(self) -> float:
        """Nats a token of the right answer."""
        return float(self.losses.mean())

    def row(self) -> dict[str, Any]:
        """The figures with what they are figures of, `query_aware` always among them: a row of a sweep's table."""
        return {
            "family": self.sample.family,
            "tokens": self.sample.tokens,
            "seed": self.sample.seed,
            "policy": None if self.policy is None else repr(self.policy),
            "budget": repr(self.budget) if isinstance(self.budget, Allocation) else self.budget,
            "query_aware": self.query_aware,
            "turn": self.turn,
            "context_tokens": len(self.sample.context_ids),
            "answered": self.answered,
            "all_answered": all(self.matched),
            "answer_nll": self.answer_nll,
            "answer_tokens": len(self.losses),
            "held": float(self.held.mean()),
            "nbytes": self.nbytes,
            "said": self.said,
        }


def matches(said: str, answers: Sequence[str]) -> tuple[bool, ...]:
    """For each expected answer whether it stands in what was said as a word, in large or small letters.

    Who says everything is right about everything, as in RULER: how much may be said is what bounds that.
    """
    if not answers or not all(answer.strip() for answer in answers):
        raise ValueError(f"answers {list(answers)}; give at least one, and none that is empty")
    return tuple(re.search(rf"(?<!\w){re.escape(a)}(?!\w)", said, re.IGNORECASE) is not None for a in answers)


def score(
    lm: LanguageModel,
    sample: Sample,
    policy: Policy | None = None,
    budget: int | Allocation | None = None,
    query_aware: bool = False,
    *,
    max_new_tokens: int | None = None,
    chunk: int | None = None,
) -> Score:
    """Let the model read the context under a policy, ask, and score what it says; no policy is the full cache.

    The context is one call (or calls of `chunk` tokens), each followed by an eviction, then the question and the
    answer's opening are one; with `query_aware` these belong to the context, so that the policy sees them before it
    evicts. Then the right answer and the model's own (greedy; up to three times as many tokens as the right one has and
    16, by default) are said token by token, each from a copy of the same cache. Raises ValueError where only one of
    policy and budget is given.
    """
    settings = {"max_new_tokens": max_new_tokens, "chunk": chunk, "query_aware": query_aware}
    return _scores(lm, [sample], policy, budget, running=False, **settings)[0]


def converse(
    lm: LanguageModel,
    samples: Sequence[Sample],
    policy: Policy | None = None,
    budget: int | Allocation | None = None,
    *,
    running: bool = True,
    max_new_tokens: int | None = None,
    chunk: int | None = None,
) -> list[Score]:
    """Several questions about one context that was read, and evicted from, before any of them came (query-blind).

    With `running` the second question comes after the model's own answer to the first, as another turn of the same
    conversation in the same cache, which goes on evicting; otherwise each starts from a copy of what was kept of the
    context, and is the first turn. `turn` in the scores tells which. Raises ValueError for samples of several contexts.
    """
    settings = {"max_new_tokens": max_new_tokens, "chunk": chunk, "query_aware": False}
    return _scores(lm, samples, policy, budget, running=running, **settings)


@torch.no_grad()
def _scores(
    lm: LanguageModel,
    samples: Sequence[Sample],
    policy: Policy | None,
    budget: int | Allocation | None,
    running: bool,
    query_aware: bool,
    max_new_tokens: int | None,
    chunk: int | None,
) -> list[Score]:
    check_counts(max_new_tokens=max_new_tokens, chunk=chunk)
    if len({sample.context for sample in samples}) != 1:
        raise ValueError(f"{len(samples)} questions about several contexts, or none; give samples of one context")
    scores = []
    with memory(lm, policy, budget, query_aware) as fresh:
        cache, logits = fresh(), None
        first = [_question(lm, samples[0])] if query_aware else []
        cache, logits, _ = read_first(lm, cache, torch.cat([samples[0].context_ids, *first]), chunk)
        for turn, sample in enumerate(samples):
            now = cache if running else deepcopy(cache)
            held, nbytes = _held(now, sample), nbytes_of(now)
            if not query_aware:
                asked = _question(lm, sample, later=running and turn > 0)
                logits = read(lm, now, asked)
            gold = lm.ids(sample.gold)
            nats = losses(lm, deepcopy(now), logits, gold)
            said = speak(lm, now, logits, max_new_tokens or 3 * len(gold) + 16)
            matched = matches(said, sample.answers)
            at = turn if running else 0
            scores.append(Score(sample, policy, budget, query_aware, at, said, matched, nats, held, nbytes))
    return scores


def _question(lm: LanguageModel, sample: Sample, later: bool = False) -> Int[Tensor, " question"]:
    """The ids of a question, to where the model goes on after the opening of its answer."""
    ids = lm.next_turn(sample.question) if later else lm.prompt(sample.context, sample.question)[1]
    return torch.cat([ids, lm.ids(sample.opening)])


def _held(cache: Cache, sample: Sample) -> Float[Tensor, "answers layers kv_heads"]:
    """Of each answer's evidence the share that is still in the cache."""
    expiry = expiry_of(cache)
    shares = []
    for spans in sample.evidence:
        tokens = [stop - start for start, stop in spans]
        parts = [metrics.present(expiry, *span) * count for span, count in zip(spans, tokens, strict=True)]
        shares.append(torch.stack(parts).sum(0) / sum(tokens))
    return torch.stack(shares)
