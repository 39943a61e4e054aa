"""BM25 over the turns of a conversation: the control that reads the question."""

import math
from dataclasses import dataclass
from typing import ClassVar

import bm25s
import numpy as np
from jaxtyping import Float

from .memory import Memory, Spans

WORDS = r"(?u)\b\w+\b"  # one-letter words and digits too: bm25s leaves them out, and "7" may be the answer


@dataclass(frozen=True)
class BM25(Memory):
    """The turns that share most with the query by Okapi BM25 in Lucene's form (bm25s, arXiv:2407.03618).

    Words are runs of letters and digits in lower case, unstemmed, none left out. Turns that share no word with the query
    are equal, so the newer go first. Query-aware: `select` without a query raises ValueError.
    """

    reads_query: ClassVar[bool] = True

    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        Memory.__post_init__(self)
        if not (0 <= self.k1 < math.inf and 0 <= self.b <= 1):
            raise ValueError(f"k1={self.k1}, b={self.b}; give a k1 of 0 or more and a b from 0 to 1")

    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        if query is None:
            raise ValueError(
                "BM25 needs a query to score the turns by; give select(spans, query), or take another memory"
            )
        said, asked = self._words([span.text for span in spans]), self._words([query])[0]
        known = {word for words in said for word in words}
        asked = [word for word in asked if word in known]
        if not asked:
            return np.zeros(len(spans))
        index = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", dtype="float64")
        index.index(said, show_progress=False)
        return index.get_scores(asked)

    def _words(self, texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(texts, token_pattern=WORDS, stopwords=None, return_ids=False, show_progress=False)
