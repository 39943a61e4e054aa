"""References of the policies over policies; each is mixed into the reference of what it wraps."""

import math

import numpy as np

from .attention import HeavyHitter, Observation
from .geometry import Norm
from .layer import softmax


class Chunked(Observation):
    """ChunkKV: chunks by their mean; one that has lost a token goes on losing. What is pinned stands aside."""

    chunk, shared = 5, False

    def scores(self, head, newest):
        if not self.shared:
            return super().worth(head, newest)
        each = [Observation.worth(self, h, newest) for h in range(self.heads)]
        return {p: sum(worth[p] for worth in each) / self.heads for p in each[0]}

    def keep(self, head, newest):
        return self.next_held if self.shared and head else super().keep(head, newest)

    def worth(self, head, newest):
        scores, out = self.scores(head, newest), {}
        for place, score in scores.items():
            first = place // self.chunk * self.chunk
            there = range(first, min(first + self.chunk, newest + 1))
            mates = [scores[p] for p in there if scores.get(p, math.inf) < math.inf]
            whole = all(p in scores for p in there)
            out[place] = score if score == math.inf else sum(mates) / len(mates) if whole else -math.inf
        return out


class Critical(Observation):
    """CriticalKV, algorithm 1: half the budget by attention, the rest by attention times what the value adds."""

    share, epsilon = 0.5, 1e-4

    def worth(self, head, newest):
        scores = super().worth(head, newest)
        first = self.best(scores, int(self.share * self.budget))
        rest = {p: (s + self.epsilon) * self.added[head, p] for p, s in scores.items()}
        return rest | dict.fromkeys(first, math.inf)


class Valued(HeavyHitter):
    """VATP over H2O: attention times the L1 norm of the value."""

    order = 1

    def keep(self, head, newest):
        recent = list(range(newest - int(self.budget * self.recent) + 1, newest + 1))
        rest = {
            p: self.memory[head][p] * float(np.linalg.norm(self.values[head, p], self.order))
            for p in self.held[head]
            if p not in recent
        }
        return recent + self.best(rest, self.budget - len(recent))


class Pinning(Norm):
    """The keys of lowest norm, and the first and the newest whatever theirs."""

    sinks, recent = 2, 3

    def worth(self, head, newest):
        free = super().worth(head, newest)
        return {p: math.inf if p < self.sinks or p > newest - self.recent else free[p] for p in free}


class Streams(Observation):
    """What heads or layers that stream have in common: sinks and the newest, else what the inner policy keeps."""

    sinks, recent, look_back = 2, 5, 6

    def __init__(self, *args):
        super().__init__(*args)
        self.far = {}

    def look(self, head, arriving):
        super().look(head, arriving)
        if head in self.far and len(self.held[head]) < arriving[-1] + 1:
            return
        last = list(arriving)[-self.look_back :]
        share = min(1, len(arriving) / self.look_back)
        now = self.measure(head, arriving, last)
        self.far[head] = (1 - share) * self.far[head] + share * now if head in self.far else now

    def measure(self, head, arriving, last):
        """The share of attention to what is neither a sink nor recent."""
        rows = [(q, row) for q in last for row in self.attention(head, q, self.held[head])]
        return sum(w for q, row in rows for p, w in row.items() if self.sinks <= p <= q - self.recent) / len(rows)

    def worth(self, head, newest):
        if not self.streams(head):
            return super().worth(head, newest)
        return {p: math.inf if p < self.sinks or p == newest else p for p in self.held[head]}


class Duo(Streams):
    """DuoAttention without training: the heads of a layer that look least far back stream."""

    streaming = 0.5

    def streams(self, head):
        return sorted(range(self.heads), key=self.far.get).index(head) < int(self.streaming * self.heads)


class Area(Duo):
    """By the area under the cumulated attention of the mean query to the mean key at each of 500 distances."""

    def measure(self, head, arriving, last):
        key = sum(self.bare(self.keys[head, p], p) for p in self.held[head]) / len(self.held[head])
        areas = []
        for g in range(self.groups):
            queries = [self.bare(self.queries[head * self.groups + g, q], q) for q in arriving]
            query = sum(queries) / len(queries)
            logits = [query @ self.turned(key, lambda f, t=t: -t * f) * self.scaling for t in range(499, -1, -1)]
            areas.append(np.cumsum(softmax(np.array(logits))).mean())
        return sum(areas) / len(areas)


class Lazy(Streams):
    """SimLayerKV: a layer streams whose heads on average pay more than the threshold to sinks and recent entries."""

    threshold = 0.7

    def streams(self, head):
        return 1 - sum(self.far.values()) / self.heads > self.threshold
