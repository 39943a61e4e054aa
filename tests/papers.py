"""The policies once more, straight from their papers: float64, lists of positions, one head and one query at a time.

Nothing here comes from fmlab; it is what fmlab is compared with.
"""

import math

import numpy as np


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class Layer:
    """One layer's memory under a policy: for each KV head the positions held and what it remembers of each."""

    def __init__(self, queries, keys, scaling, budget):
        self.queries, self.keys, self.scaling, self.budget = queries, keys, scaling, budget
        self.heads, self.tokens = keys.shape[:2]
        self.groups = len(queries) // self.heads
        self.held = [[] for _ in range(self.heads)]
        self.memory = [{} for _ in range(self.heads)]
        self.expiry = np.full((self.heads, self.tokens), self.tokens + 1)

    def attention(self, head, query, places):
        """What a query pays to the entries at `places` up to its own, one row for each query head of the group."""
        visible = [p for p in places if p <= query]
        rows = []
        for g in range(self.groups):
            q = self.queries[head * self.groups + g, query]
            rows.append(dict(zip(visible, softmax(self.keys[head, visible] @ q * self.scaling), strict=True)))
        return rows

    def run(self, calls):
        seen = 0
        for new in calls:
            arriving = range(seen, seen + new)
            for head in range(self.heads):
                self.held[head] += arriving
                self.look(head, arriving)
            seen += new
            for head in range(self.heads):
                if len(self.held[head]) > self.budget:
                    kept = self.keep(head, seen - 1)
                    assert len(set(kept)) == self.budget and set(kept) <= set(self.held[head])
                    for place in set(self.held[head]) - set(kept):
                        self.expiry[head, place] = seen
                    self.next_held = kept
                    self.held[head] = sorted(kept)
        return self.expiry

    def best(self, worth, count):
        """The `count` places of most worth; of equals the newer."""
        return sorted(worth, key=lambda place: (worth[place], place), reverse=True)[:count]

    def look(self, head, arriving):
        """Before an eviction: what the new queries tell."""

    def keep(self, head, newest):
        """The places to keep, `budget` of them."""
        raise NotImplementedError


class Sliding(Layer):
    def keep(self, head, newest):
        return list(range(newest - self.budget + 1, newest + 1))


class Streaming(Layer):
    """StreamingLLM: attention sinks and a rolling window (figure 4)."""

    sinks = 4

    def keep(self, head, newest):
        return list(range(self.sinks)) + list(range(newest - self.budget + self.sinks + 1, newest + 1))


class Norm(Layer):
    """Devoto et al.: keep the keys of the lowest L2 norm."""

    def keep(self, head, newest):
        return self.best({p: -math.sqrt(sum(x * x for x in self.keys[head, p])) for p in self.held[head]}, self.budget)


class HeavyHitter(Layer):
    """H2O, algorithm 1: F adds up the attention that a token received; keep the largest F and the recent half."""

    recent = 0.5

    def look(self, head, arriving):
        for query in arriving:
            for row in self.attention(head, query, self.held[head]):
                for place, paid in row.items():
                    self.memory[head][place] = self.memory[head].get(place, 0.0) + paid / self.groups

    def keep(self, head, newest):
        recent = list(range(newest - int(self.budget * self.recent) + 1, newest + 1))
        rest = {p: self.memory[head][p] for p in self.held[head] if p not in recent}
        return recent + self.best(rest, self.budget - len(recent))


class Omission(Layer):
    """TOVA: drop what the last query looks at least, averaged over all heads of the layer; the newest stays."""

    def keep(self, head, newest):
        if head:  # the first head has decided for the layer
            return self.next_held
        rows = [row for h in range(self.heads) for row in self.attention(h, newest, self.held[-1])]
        worth = {p: sum(row[p] for row in rows) / len(rows) for p in self.held[0] if p != newest}
        return [newest] + self.best(worth, self.budget - 1)


class Observation(Layer):
    """SnapKV, listing 1, for a prompt in one call; a shorter call moves the mean by its share of the window."""

    window, kernel = 6, 3

    def look(self, head, arriving):
        last = list(arriving)[-self.window :]
        share = len(last) / self.window
        rows = [row for query in last for row in self.attention(head, query, self.held[head])]
        for place in self.held[head]:
            mean = sum(row.get(place, 0.0) for row in rows) / len(rows)
            self.memory[head][place] = (1 - share) * self.memory[head].get(place, 0.0) + share * mean

    def keep(self, head, newest):
        window = [p for p in self.held[head] if p > newest - self.window]
        prefix = [p for p in self.held[head] if p <= newest - self.window]
        votes = [self.memory[head][p] for p in prefix]
        half, pooled = self.kernel // 2, {}
        for i, place in enumerate(prefix):  # average pooling, zeros beyond both edges
            pooled[place] = sum(votes[j] for j in range(i - half, i + half + 1) if 0 <= j < len(votes)) / self.kernel
        return window + self.best(pooled, self.budget - len(window))
