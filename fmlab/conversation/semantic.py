"""A memory of topics: spans are embedded and clustered, and every cluster is represented before any is twice."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans

from .encoders import Encoder, embedded, unit
from .memory import Memory, Spans


@dataclass(frozen=True)
class Semantic(Memory):
    """What stands for each topic of the conversation; or with a query, what is closest to it.

    Without a query (query-blind) the spans' vectors are clustered by k-means (scikit-learn). A cluster's spans are
    ranked by their closeness to its centre (cosine) plus `recency` times how new they are, from 0 to 1. The best of each
    cluster is taken first, then round after round the next ones, each cluster as often as its size asks for: one from
    each in every round holds less of the evidence (.11 and not .14 at an eighth of the tokens of 18 meetings of QMSum,
    by MiniLM; a random choice .13). `clusters=None` is the square root of half the number of spans, rounded up
    (Mardia, Kent and Bibby, Multivariate Analysis, 1979, p. 365); there are never more than there are different vectors.

    With a query (query-aware) the score is closeness to the query alone, and a turn a cluster would keep what has
    nothing to do with it: of the same evidence closeness holds .31, closeness in rounds over the clusters .25.

    Deterministic: the clusters' seed is fixed.
    """

    reads_query: ClassVar[bool] = True

    encoder: Encoder
    clusters: int | None = None
    recency: float = 0.02

    def __post_init__(self) -> None:
        Memory.__post_init__(self)
        if isinstance(self.encoder, str) or not isinstance(self.encoder, Encoder):  # a str has an `encode` too
            raise TypeError(
                f"encoder={self.encoder!r:.60} is no encoder; give an object with encode(texts), such as MiniLM()"
            )
        if self.clusters is not None and self.clusters < 1:
            raise ValueError(f"clusters={self.clusters}; give 1 or more, or None for a number by the spans")
        if not (math.isfinite(self.recency) and self.recency >= 0):
            raise ValueError(f"recency={self.recency}; give 0 (closeness alone) or more")

    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        """With a query 1 + cosine; without, when its turn comes, from 1 for the first down to 1 / spans."""
        texts = [span.text for span in spans]
        if query is not None:
            return self._closeness(texts, query)
        vectors = embedded(self.encoder, texts)
        labels, centres = self._clustered(vectors)
        age = np.arange(len(spans))[::-1] / max(1, len(spans) - 1)
        worth = (vectors * unit(centres)[labels]).sum(axis=1) + self.recency * (1 - age)
        scores = np.empty(len(spans))
        scores[_turns(labels, worth)] = np.arange(len(spans), 0, -1) / len(spans)
        return scores

    def _closeness(self, texts: list[str], query: str) -> Float[np.ndarray, " spans"]:
        """1 + cosine. Equal texts score equally to the last bit, which a product of equal rows does not promise, and the
        noise of an encoder's batches, about 1e-7, decides between no two others either."""
        different = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        vectors = embedded(self.encoder, [*different, query])
        scores = np.clip(1 + vectors[:-1] @ vectors[-1], 0, None).round(6)
        return scores[[different[text] for text in texts]]

    def _clustered(
        self, vectors: Float[np.ndarray, "spans d"]
    ) -> tuple[Int[np.ndarray, " spans"], Float[np.ndarray, "clusters d"]]:
        wanted = self.clusters or math.ceil(math.sqrt(len(vectors) / 2))
        # rounded, since an encoder may give equal texts vectors that differ in the last bits
        number = min(wanted, len(np.unique(vectors.round(6), axis=0)))
        found = KMeans(number, random_state=0, n_init=1).fit(vectors)
        return found.labels_, found.cluster_centers_


def _turns(labels: Int[np.ndarray, " n"], worth: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The places in the order in which they are taken: the best of each label, then each label's next in proportion.

    The place with `before` better ones of its label, which has `size` places, comes at (before + 1/2) / size: the order
    of Sainte-Laguë's quotients. Of equal ones the larger label first; of equal worth the later place.
    """
    order = np.lexsort((-np.arange(len(worth)), -worth, labels))  # by label, then worth, then place
    before = np.empty(len(worth), dtype=np.int64)
    before[order] = np.arange(len(worth)) - np.searchsorted(labels[order], labels[order])
    size = np.bincount(labels)[labels]
    return np.lexsort((-np.arange(len(worth)), labels, -size, (before + 0.5) / size, before > 0))
