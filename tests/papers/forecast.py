"""References of the policies that foretell attention or have the text repeated."""

import math

import numpy as np

from .layer import Layer, softmax


class Foretold(Layer):
    """Expected attention: the moment generating function of a Gaussian query, turned by the mean rotation to come."""

    horizon, sinks, window, covariance, value_norms, epsilon = 20, 2, 6, True, True, 0.0

    def mean_turn(self, start):
        """The mean rotation of the next places as a matrix."""
        d = self.keys.shape[-1]
        columns = np.eye(d)
        turns = [
            np.stack([self.turned(columns[i], lambda f, t=t: t * f) for i in range(d)], 1)
            for t in range(start, start + self.horizon)
        ]
        return sum(turns) / len(turns)

    def look(self, head, arriving):
        held = self.held[head]
        turn = self.mean_turn(arriving[-1] + 1)
        counted = [q for q in arriving if q >= self.sinks] or list(arriving)[-1:]
        places = [p for p in held if p >= self.sinks]
        fresh = dict.fromkeys(held, 0.0)
        for g in range(self.groups if places else 0):
            bare = np.stack([self.bare(self.queries[head * self.groups + g, q], q) for q in counted])
            mean = bare.mean(0)
            covariance = sum(np.outer(q - mean, q - mean) for q in bare) / len(bare) * self.covariance
            mean, covariance = turn @ mean, turn @ covariance @ turn.T
            keys = [self.keys[head, p] for p in places]
            logits = [mean @ k * self.scaling + k @ covariance @ k * self.scaling**2 / 2 for k in keys]
            for place, paid in zip(places, softmax(np.array(logits)), strict=True):
                fresh[place] += paid / self.groups
        share = min(1, len(arriving) / self.window)
        for place in held:
            old = fresh[place] if place in arriving else self.memory[head][place]
            self.memory[head][place] = (1 - share) * old + share * fresh[place]

    def worth(self, head, newest):
        norm = lambda p: float(np.linalg.norm(self.values[head, p])) if self.value_norms else 1.0  # noqa: E731
        worth = {p: (self.memory[head][p] + self.epsilon) * norm(p) for p in self.held[head]}
        return worth | {p: math.inf for p in worth if p < self.sinks}


class Repeated(Layer):
    """KVzip: the most attention that was received while the text was repeated."""

    def worth(self, head, newest):
        return {p: self.repeated[head, p] for p in self.held[head]}
