"""One layer's memory, one head and one query at a time, in float64 and lists of positions."""

import math

import numpy as np


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class Layer:
    """One layer's memory under a policy: for each KV head the positions held and what it remembers of each."""

    def __init__(self, trace, layer, budget):
        wide = lambda tensor: tensor[layer].double().numpy()  # noqa: E731
        self.queries, self.keys, self.values = wide(trace.queries), wide(trace.keys), wide(trace.values)
        self.added = None if trace.output_norms is None else wide(trace.output_norms)
        self.repeated = None if trace.repeated is None else wide(trace.repeated)
        self.rope, self.scaling, self.budget = trace.rope, trace.scaling, budget
        self.heads, self.tokens = self.keys.shape[:2]
        self.groups = len(self.queries) // self.heads
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
        return self.best(self.worth(head, newest), self.budget)

    def worth(self, head, newest):
        """What each place held is worth; infinity where it must stay."""
        raise NotImplementedError

    def turned(self, x, angle_of):
        """A vector with each of its planes turned by an angle, scaled as the model scales what it rotates."""
        half, out = len(self.rope.inv_freq), x.copy()
        for i in range(half):
            angle = angle_of(float(self.rope.inv_freq[i]))
            out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return out

    def bare(self, x, place):
        """A key or query as it was before the rotary embedding, for a model that does not scale it."""
        assert self.rope.scaling == 1
        return self.turned(x, lambda frequency: -place * frequency)


class Sliding(Layer):
    def keep(self, head, newest):
        return list(range(newest - self.budget + 1, newest + 1))


class Streaming(Layer):
    """StreamingLLM: attention sinks and a rolling window (figure 4)."""

    sinks = 4

    def keep(self, head, newest):
        return list(range(self.sinks)) + list(range(newest - self.budget + self.sinks + 1, newest + 1))
