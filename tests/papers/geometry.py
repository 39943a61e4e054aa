"""References of the policies that look at keys and values."""

import math

import numpy as np

from .layer import Layer, softmax


class Norm(Layer):
    """Devoto et al.: keep the keys of the lowest L2 norm."""

    def worth(self, head, newest):
        return {p: -math.sqrt(sum(x * x for x in self.keys[head, p])) for p in self.held[head]}


class Likeness(Layer):
    """KeyDiff: drop the keys most like the anchor, the mean of all directions."""

    directions = True

    def worth(self, head, newest):
        keys = {p: self.keys[head, p] for p in self.held[head]}
        anchor = sum(k / (np.linalg.norm(k) if self.directions else 1) for k in keys.values()) / len(keys)
        return {p: -(k @ anchor) / (np.linalg.norm(k) * np.linalg.norm(anchor)) for p, k in keys.items()}


class Lag(Layer):
    """LagKV: each block ranked by its spread relative to the next block."""

    sinks, lag = 1, 3

    def look(self, head, arriving):
        rank, held = self.memory[head], self.held[head]
        block = lambda number: [p for p in held if 0 <= p - self.sinks - number * self.lag < self.lag]  # noqa: E731
        number = 0
        while self.sinks + (number + 2) * self.lag <= arriving[-1] + 1:
            mine, following = block(number), block(number + 1)
            number += 1
            if not mine or mine[0] in rank:
                continue
            worth = np.zeros(len(mine))
            for x in (self.keys[head], self.values[head]):
                low, high = x[following].min(0), x[following].max(0)
                worth += softmax(np.std((x[mine] - low) / np.maximum(high - low, 1e-12), axis=-1, ddof=1)) / 2
            for place, score in zip(mine, worth, strict=True):
                rank[place] = 1 + sum(worth > score)

    def worth(self, head, newest):
        return {p: -self.memory[head].get(p, -math.inf) for p in self.held[head]}


class Leverage(Layer):
    """Compactor: the diagonal of X (X'X + ridge)^-1 X' of the centred keys before the rotary embedding."""

    ridge = 0.01

    def worth(self, head, newest):
        x = np.stack([self.bare(self.keys[head, p], p) for p in self.held[head]])
        x = x - x.mean(0)
        gram = x.T @ x
        inverse = np.linalg.inv(gram + self.ridge * np.trace(gram) / len(gram) * np.eye(len(gram)))
        return dict(zip(self.held[head], np.diag(x @ inverse @ x.T), strict=True))


class Shares(Layer):
    """CurDKV: the share of a key in the squared norms of its block times that of its value; sinks stay."""

    block, sinks = 16, 4

    def combine(self, key, value):
        return key * value

    def share(self, x, place, held):
        return x[place] @ x[place] / sum(x[p] @ x[p] for p in held if p // self.block == place // self.block)

    def worth(self, head, newest):
        held = self.held[head]
        shares = {p: [self.share(x[head], p, held) for x in (self.keys, self.values)] for p in held}
        return {p: math.inf if p < self.sinks else self.combine(*shares[p]) for p in held}
