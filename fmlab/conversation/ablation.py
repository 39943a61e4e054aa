"""A memory that keeps the spans without which a question would be less probable."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float

from ..language import LanguageModel
from .importance import newest
from .memory import Memory, Spans
from .reading import runs, written
from .span import Span

LEFT_OUT = "…"  # stands for what a span said, so that who spoke when stays as it was


@dataclass(frozen=True)
class QuestionLogProb:
    """The log-probability, in nats, that a local model gives to a question of the user after a context of the user's."""

    lm: LanguageModel

    @torch.no_grad()
    def __call__(self, context: str, question: str) -> float:
        """The sum over the question's tokens and the marks after it. Raises ValueError where either says nothing."""
        before, asked = self.lm.prompt(context, question)
        ids = torch.cat([before, asked])[None]
        logits = self.lm.model(input_ids=ids, logits_to_keep=len(asked) + 1).logits[0, :-1]
        return float(logits.float().log_softmax(-1).gather(1, asked[:, None]).sum())


@dataclass(frozen=True)
class Ablation(Memory):
    """Keeps the spans whose loss would make the query least expected: leave-one-out attribution by log-probability alone.

    For a model whose attention is out of reach. `log_prob(context, question)` gives log p(question | context), as
    `QuestionLogProb(lm)` does; a token of a span is worth what this falls by when "…" stands for the span, divided by the
    span's tokens, and 0 where it rises. The spans are read in windows of `window` tokens, so that each is weighed against
    its neighbours only. The likelihood of the question stands for that of an answer, which is not known when a memory is
    asked (query likelihood, Ponte and Croft 1998). Without a query the newest span that says something stands in.

    That takes one reading of a window for every span in it, and one more: for each query some 100 times the work of
    `Importance`. The scores are kept for other budgets.
    """

    reads_query = True

    log_prob: Callable[[str, str], float]
    window: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window={self.window}; give a number of tokens, 1 or more")

    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        """Nats a token that the question loses without each span."""
        asked = newest(spans) if query is None else query
        return np.array(_scores(self.log_prob, tuple(spans), asked, self.window) if asked else [0.0] * len(spans))


@lru_cache(maxsize=1024)
def _scores(
    log_prob: Callable[[str, str], float], spans: tuple[Span, ...], question: str, tokens: int
) -> tuple[float, ...]:
    scores = []
    for run in runs(spans, tokens):
        whole = log_prob(written(run)[0], question)
        for place, span in enumerate(run):
            without = [*run[:place], replace(span, text=LEFT_OUT), *run[place + 1 :]]
            lost = whole - log_prob(written(without)[0], question)
            scores.append(max(0.0, lost) / max(1, span.tokens))
    return tuple(scores)
