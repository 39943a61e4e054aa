"""References of the policies that look at attention."""

import math

import numpy as np

from .layer import Layer, softmax


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

    def worth(self, head, newest):
        window = [p for p in self.held[head] if p > newest - self.window]
        prefix = [p for p in self.held[head] if p <= newest - self.window]
        votes = [self.memory[head][p] for p in prefix]
        half, pooled = self.kernel // 2, {}
        for i, place in enumerate(prefix):  # average pooling, zeros beyond both edges
            pooled[place] = sum(votes[j] for j in range(i - half, i + half + 1) if 0 <= j < len(votes)) / self.kernel
        return pooled | dict.fromkeys(window, math.inf)


class MeanReceived(HeavyHitter):
    """The sum of H2O over the number of queries that saw the token."""

    def keep(self, head, newest):
        seen_by = {p: newest - p + 1 for p in self.held[head]}
        return self.best({p: self.memory[head][p] / seen_by[p] for p in self.held[head]}, self.budget)


class Persistent(Layer):
    """Scissorhands, algorithm 2: mark what a query pays less than 1 / t, drop what is marked most often."""

    window, recent = 6, 2

    def look(self, head, arriving):
        last = list(arriving)[-self.window :]
        share = len(last) / self.window
        for place in self.held[head]:
            marks = 0
            for query in last:
                rows = self.attention(head, query, self.held[head])
                marks += sum(place in row and row[place] < 1 / len(row) for row in rows)
            marks /= len(last) * self.groups
            self.memory[head][place] = (1 - share) * self.memory[head].get(place, 0.0) + share * marks

    def worth(self, head, newest):
        return {p: math.inf if p > newest - self.recent else -self.memory[head][p] for p in self.held[head]}


class Question(Layer):
    """Finch: what the question's queries pay, each row times the number of entries that its query sees."""

    window = 6

    def look(self, head, arriving):
        last = list(arriving)[-self.window :]
        share = len(last) / self.window
        rows = [row for query in last for row in self.attention(head, query, self.held[head])]
        for place in self.held[head]:
            mean = sum(row.get(place, 0.0) * len(row) for row in rows) / len(rows)
            self.memory[head][place] = (1 - share) * self.memory[head].get(place, 0.0) + share * mean

    def worth(self, head, newest):
        return {p: math.inf if p > newest - self.window else self.memory[head][p] for p in self.held[head]}


class Tiles(Layer):
    """The non-causal attention of Compactor: column sums of the softmax within a chunk, times the norm of the value."""

    chunk, kernel, scaled = 7, 3, False

    def look(self, head, arriving):
        arriving, worth = list(arriving), {}
        for start in range(0, len(arriving), self.chunk):
            tile = arriving[start : start + self.chunk]
            for g in range(self.groups):
                for query in tile:
                    logits = self.keys[head, tile] @ self.queries[head * self.groups + g, query]
                    for place, paid in zip(tile, softmax(logits * (self.scaling if self.scaled else 1)), strict=True):
                        worth[place] = worth.get(place, 0.0) + paid / self.groups
        worth = {p: w * float(np.linalg.norm(self.values[head, p])) for p, w in worth.items()}
        half = self.kernel // 2
        for place in arriving:
            near = [worth[p] for p in range(place - half, place + half + 1) if p in worth]
            self.memory[head][place] = sum(near) / len(near)

    def worth(self, head, newest):
        return {p: self.memory[head][p] for p in self.held[head]}
