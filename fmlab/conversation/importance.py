"""A memory that keeps what a question makes a language model look at."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..language import LanguageModel
from .memory import Memory, Spans
from .reading import Window, attention, check_model, mended, read, runs
from .span import Span

NOTHING = "N/A"  # a question without content
BEST = 8  # tokens of a span that speak for it
FLOOR = 1e-6  # attention below which a share of a layer is none


@dataclass(frozen=True)
class Importance(Memory):
    """Keeps the spans to whose words a local model attends more when it is asked the query than when it is asked nothing.

    The spans are read in windows of `window` tokens, each in a prompt of its own that ends with the question. For every
    token and layer, what the question's tokens pay to it, mean over them and the heads, is divided by what the question
    "N/A" pays (calibration as in arXiv:2410.02642, as a ratio here): what is near, is a sink or a mark of the template
    draws as much either way and comes out as 1. Of these ratios the mean over the layers is taken, and of a span's own
    tokens the mean of the best 8, so that long spans win nothing by their length; a shorter span is filled up with 1. A
    ratio has no unit, so that windows compare, and the windows do not see each other.

    Without a query, or with one that says nothing, the newest span that says something is asked in its place: query-blind. With
    SmolLM2-135M that found no more than chance of what was asked for later, and neither did attention that is not
    calibrated, even with the query. A window is read once, the scores are kept for other budgets; the last conversation
    is held as a KV cache (`held`). Raises BudgetError where a window and the question are longer than the model's context.
    """

    reads_query = True

    lm: LanguageModel
    window: int = 2_048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self.lm)
        if self.window < 1:
            raise ValueError(f"window={self.window}; give a number of tokens, 1 or more")

    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        """How many times more attention than for no question, of the best tokens of each span."""
        asked = query if query and query.strip() else newest(spans)
        if not asked:
            return np.zeros(len(spans))
        with mended("window", self.window, "give a smaller window, shorter messages"):
            return np.array(_scores(self.lm, tuple(spans), asked, self.window))


def newest(spans: Spans) -> str | None:
    """The text of the last span that says something, if there is one."""
    return next((span.text for span in reversed(spans) if span.text.strip()), None)


@lru_cache(maxsize=1024)
def _scores(lm: LanguageModel, spans: tuple[Span, ...], question: str, tokens: int) -> tuple[float, ...]:
    scores = []
    for window, for_nothing in held(lm, spans, tokens):
        ratios = ((attention(lm, window, question) + FLOOR) / (for_nothing + FLOOR)).mean(0)
        for start, stop in window.places:
            best = ratios[start:stop].topk(min(BEST, stop - start)).values
            scores.append(float(torch.cat([best, ratios.new_ones(BEST - len(best))]).mean()))
    return tuple(scores)


@lru_cache(maxsize=1)
def held(
    lm: LanguageModel, spans: tuple[Span, ...], tokens: int
) -> list[tuple[Window, Float[Tensor, "layers context"]]]:
    """The windows of the last conversation, and what no question draws in each; `held.cache_clear()` frees them."""
    windows = [read(lm, run) for run in runs(spans, tokens)]
    return [(window, attention(lm, window, NOTHING)) for window in windows]
