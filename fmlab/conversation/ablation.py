"""A memory that keeps the spans without which a question would be less probable."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..language import LanguageModel
from .importance import newest
from .memory import Memory, Spans
from .reading import check_context, check_model, mended, runs, written
from .span import Span

LEFT_OUT = "…"  # stands for what a span said, so that who spoke when stays as it was

LogProb = Callable[[str, str], float]


@runtime_checkable
class Begins(Protocol):
    """What has to see a whole context before it can say what a part of it is worth."""

    def begin(self, context: str, question: str) -> LogProb:
        """What is asked of that context and of those in which something is left out."""


@dataclass(frozen=True)
class QuestionLogProb:
    """The log-probability, in nats, that a local model gives to a question of the user after a context of the user's."""

    lm: LanguageModel

    def __post_init__(self) -> None:
        check_model(self.lm)

    @torch.no_grad()
    def __call__(self, context: str, question: str) -> float:
        """The sum over the question's tokens and the marks after it. Raises ValueError where either says nothing, and
        BudgetError where both are longer than the model's context."""
        return _log_prob(self.lm, *self.lm.prompt(context, question))


@dataclass(frozen=True)
class AnswerLogProb:
    """The log-probability, in nats, that a local model gives to its own answer to a question of the user about a context.

    The answer is greedy, of at most `max_new_tokens` tokens, its end among them where it comes to one.
    """

    lm: LanguageModel
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        check_model(self.lm)
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens!r:.40}; give a number of tokens, 1 or more")

    def __call__(self, context: str, question: str) -> float:
        """Of the answer to this very context: the sum over its tokens. Raises ValueError where either says nothing, and
        BudgetError where both and the answer are longer than the model's context."""
        return self.begin(context, question)(context, question)

    @torch.no_grad()
    def begin(self, context: str, question: str) -> LogProb:
        """Answers from this context, and gives the log-probability of that answer after any context."""
        ids = torch.cat(self.lm.prompt(context, question))[None]
        check_context(self.lm, ids.shape[1] + self.max_new_tokens, "messages, question and answer")
        answer = self.lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.max_new_tokens, do_sample=False
        )[0, ids.shape[1] :]
        return partial(self._of, answer)

    @torch.no_grad()
    def _of(self, answer: Int[Tensor, " tokens"], context: str, question: str) -> float:
        return _log_prob(self.lm, torch.cat(self.lm.prompt(context, question)), answer)


@dataclass(frozen=True)
class Ablation(Memory):
    """Keeps the spans whose loss would make what is measured least expected: leave-one-out by log-probability alone.

    For a model whose attention is out of reach. A token of a span is worth what the log-probability falls by when "…"
    stands for the span, divided by the span's tokens, and 0 where it rises. The spans are read in windows of `window`
    tokens, so that each is weighed against its neighbours only. Without a query, or for one that says nothing, the newest
    span that says something stands in.

    `log_prob(context, question)` is `QuestionLogProb(lm)`, in which the likelihood of the question stands for that of an
    answer (query likelihood, Ponte and Croft 1998); `AnswerLogProb(lm)`, the likelihood of what the model answers from
    the whole window, which is made once for each window and question (leave-one-out, a baseline of ContextCite,
    arXiv:2409.00729); or a function of yours. One that has a `begin` as `AnswerLogProb` has is shown the window first.

    That takes one reading of a window for every span in it, and one more: for each query some 100 times the work of
    `Importance`. The scores are kept for other budgets. The lab's own scorers raise BudgetError where a window and what
    is asked of it are longer than the model's context.
    """

    reads_query = True

    log_prob: LogProb
    window: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.log_prob):
            raise TypeError(
                f"log_prob={self.log_prob!r:.60} cannot be called; give a function of (context, question), such as "
                "QuestionLogProb(fm.load())"
            )
        if self.window < 1:
            raise ValueError(f"window={self.window}; give a number of tokens, 1 or more")

    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        """Nats a token that the question, or the answer, loses without each span."""
        asked = query if query and query.strip() else newest(spans)
        if not asked:
            return np.zeros(len(spans))
        with mended("window", self.window, "give a smaller window, shorter messages"):
            return np.array(_scores(self.log_prob, tuple(spans), asked, self.window))


@lru_cache(maxsize=1024)
def _scores(log_prob: LogProb, spans: tuple[Span, ...], question: str, tokens: int) -> tuple[float, ...]:
    scores = []
    for run in runs(spans, tokens):
        context = written(run)[0]
        measured = log_prob.begin(context, question) if isinstance(log_prob, Begins) else log_prob
        whole = measured(context, question)
        for place, span in enumerate(run):
            without = [*run[:place], replace(span, text=LEFT_OUT), *run[place + 1 :]]
            lost = whole - measured(written(without)[0], question)
            scores.append(max(0.0, lost) / max(1, span.tokens))
    return tuple(scores)


def _log_prob(lm: LanguageModel, before: Int[Tensor, " before"], said: Int[Tensor, " said"]) -> float:
    """What the model gives to the tokens that are said after others."""
    check_context(lm, len(before) + len(said), "messages, question and what is said")
    logits = lm.model(input_ids=torch.cat([before, said])[None], logits_to_keep=len(said) + 1).logits[0, :-1]
    return float(logits.float().log_softmax(-1).gather(1, said[:, None]).sum())
