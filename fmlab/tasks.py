"""What a model still knows under a budget: planted facts that it is asked for, and negative log-likelihood."""

import math
import re
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import metrics
from .core import Allocation, Policy, held_before_eviction
from .language import LanguageModel
from .reading import check_counts, expiry_of, memory, nbytes_of, read, read_first, speak
from .texts import Planted, Sample, needle, recall

__all__ = ["NLL", "Answer", "Planted", "Reply", "Sample", "answer", "ask", "needle", "nll", "recall"]


@dataclass(frozen=True, eq=False)
class Reply:
    """What the model said, and what its cache held when it was asked."""

    text: str
    expiry: Int[Tensor, "layers kv_heads tokens"]
    """Of everything that was read before the model began to speak or, query-blind, before the question came."""
    prefill_seconds: float
    seconds: float
    """From the question's first token to the last one said; the prefill is not in it."""
    nbytes: int
    query_aware: bool


@dataclass(frozen=True, eq=False)
class Answer:
    """A reply to the question of a planted fact."""

    planted: Planted
    reply: Reply
    answered: bool
    """The answer stands in the reply as a word."""
    present: Float[Tensor, "layers kv_heads"]
    """Share of the fact's tokens that each head still held when the question was answered from."""


@dataclass(frozen=True, eq=False)
class NLL:
    """Teacher-forced negative log-likelihood of a text, token by token, in nats."""

    losses: Float[Tensor, " scored"]
    """Of the tokens `first` to the end."""
    first: int
    """The first token scored: the one after the first query that came when the prefill was over."""
    evicting_from: int | None
    """The first token predicted with something evicted; None if nothing was."""
    expiry: Int[Tensor, "layers kv_heads tokens"]
    nbytes: int
    prefill_seconds: float
    seconds: float

    def delta(self, full: "NLL") -> Float[Tensor, " compared"]:
        """By how many nats each token is less likely than under `full`: only tokens predicted after eviction began.

        With a prefill above every budget compared, these are the same tokens for every policy and budget. Empty where
        nothing was evicted. Raises ValueError for runs that scored different tokens.
        """
        if (self.first, len(self.losses)) != (full.first, len(full.losses)):
            raise ValueError(
                f"tokens {self.first} to {self.first + len(self.losses)} were scored here, {full.first} to "
                f"{full.first + len(full.losses)} there; give both runs the same ids and prefill"
            )
        skip = len(self.losses) if self.evicting_from is None else self.evicting_from - self.first
        return (self.losses - full.losses)[skip:]


def answer(
    lm: LanguageModel,
    sample: Sample,
    policy: Policy | None = None,
    budget: int | Allocation | None = None,
    *,
    max_new_tokens: int = 24,
    chunk: int | None = None,
    query_aware: bool = False,
) -> list[Answer]:
    """Ask for every planted fact, each time from the same cache, and say what was present and what was answered.

    Arguments as in `ask`. A question that is answered right though its fact is gone was guessed, or leaked into other
    entries of the cache: the two columns are kept apart.
    """
    questions = [planted.fact.question for planted in sample.planted]
    settings = {"max_new_tokens": max_new_tokens, "chunk": chunk, "query_aware": query_aware}
    replies = ask(lm, sample.context, questions, policy, budget, **settings)
    return [
        Answer(
            planted,
            reply,
            answered=re.search(rf"\b{re.escape(planted.fact.answer)}\b", reply.text) is not None,
            present=metrics.present(reply.expiry, planted.start, planted.stop),
        )
        for planted, reply in zip(sample.planted, replies, strict=True)
    ]


@torch.no_grad()
def ask(
    lm: LanguageModel,
    context: str,
    questions: Sequence[str],
    policy: Policy | None = None,
    budget: int | Allocation | None = None,
    *,
    max_new_tokens: int = 24,
    chunk: int | None = None,
    query_aware: bool = False,
) -> list[Reply]:
    """Let the model read a context under a policy and answer questions, greedily; no policy is the full cache.

    The context is one call (or calls of `chunk` tokens); then each question starts from a copy of what was kept. With
    `query_aware` the question is read along with the context, before the eviction, anew for each question: never
    compare the two in one column. Raises ValueError where only one of policy and budget is given, or a part is empty.
    """
    check_counts(max_new_tokens=max_new_tokens, chunk=chunk)
    if not questions:
        raise ValueError("no questions; give at least one")
    prompts = [lm.prompt(context, question) for question in questions]
    replies = []
    with memory(lm, policy, budget, query_aware) as fresh:
        if not query_aware:
            kept, _, prefill_seconds = read_first(lm, fresh(), prompts[0][0], chunk)
        for context_ids, question_ids in prompts:
            if query_aware:
                kept, logits, prefill_seconds = read_first(lm, fresh(), torch.cat([context_ids, question_ids]), chunk)
            expiry, nbytes = expiry_of(kept), nbytes_of(kept)
            cache, start = kept if query_aware else deepcopy(kept), time.perf_counter()
            if not query_aware:
                logits = read(lm, cache, question_ids)
            said = speak(lm, cache, logits, max_new_tokens)
            seconds = time.perf_counter() - start
            replies.append(Reply(said, expiry, prefill_seconds, seconds, nbytes, query_aware))
    return replies


@torch.no_grad()
def nll(
    lm: LanguageModel,
    text: str | Sequence[int] | Tensor,
    policy: Policy | None = None,
    budget: int | Allocation | None = None,
    *,
    prefill: int | None = None,
    chunk: int = 1,
    progress: Callable[[int], None] | None = None,
) -> NLL:
    """Negative log-likelihood of a text or its ids under a policy; no policy is the full cache.

    The first `prefill` tokens (half of them by default) are one call, then come calls of `chunk` tokens. The tokens
    scored are those predicted by these later calls, so they are the same whatever the policy. `progress(done)` is
    called with the number of tokens read. Raises ValueError where there is nothing to score.
    """
    ids = lm.ids(text)
    prefill = len(ids) // 2 if prefill is None else prefill
    check_counts(prefill=prefill, chunk=chunk)
    if len(ids) < prefill + 2:
        raise ValueError(f"{len(ids)} tokens with a prefill of {prefill} leave none to score; lower prefill")
    calls = ids[prefill:-1].split(chunk)
    losses, evicting_from = [], None
    layers = lm.model.config.get_text_config(decoder=True).num_hidden_layers
    full = math.inf if budget is None else held_before_eviction(budget, layers)
    with memory(lm, policy, budget, False) as fresh:
        cache, _, prefill_seconds = read_first(lm, fresh(), ids[:prefill], None)
        done, start = prefill, time.perf_counter()
        if progress is not None:
            progress(done)
        for call in calls:
            if evicting_from is None and done > full:
                evicting_from = done + 1
            logits = lm.model(input_ids=call[None], past_key_values=cache, use_cache=True).logits[0].float()
            targets = ids[done + 1 : done + 1 + len(call)]
            losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
            done += len(call)
            if progress is not None:
                progress(done)
        seconds = time.perf_counter() - start
        expiry, nbytes = expiry_of(cache), nbytes_of(cache)
    return NLL(torch.cat(losses).cpu(), prefill + 1, evicting_from, expiry, nbytes, prefill_seconds, seconds)
