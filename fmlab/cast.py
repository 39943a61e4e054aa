"""A policy for each sequence of a batch, so that a grid of policies decodes as one."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .core import Policy, Stats
from .view import View

BETWEEN = "\x1f"  # the names of those who share a column


@dataclass(frozen=True)
class Cast(Policy):
    """Each sequence of the batch under a policy of its own: `policies[i]` has the rows whose `view.sequence` is i.

    The columns of different policies lie in different rows, so they share columns: the k-th of each is one column, named
    after all of them. They may differ in type, and come back as the widest.
    """

    listed: ClassVar[bool] = False
    policies: tuple[Policy, ...]

    @property
    def needs(self) -> frozenset[str]:
        """What any of them needs."""
        return frozenset().union(*(policy.needs for policy in self.policies))

    @cached_property
    def parts(self) -> list[tuple[Policy, tuple[int, ...]]]:
        """Each policy once, with its sequences."""
        found: list[tuple[Policy, list[int]]] = []
        for sequence, policy in enumerate(self.policies):
            known = next((sequences for other, sequences in found if other is policy), None)
            if known is None:
                found.append((policy, [sequence]))
            else:
                known.append(sequence)
        return [(policy, tuple(sequences)) for policy, sequences in found]

    def observe(self, view: View, stats: Stats) -> Stats:
        pieces, order = [], []
        for place, policy, rows, part in self._present(view):
            observed = policy.observe(part, _own(stats, place, rows))
            _check(policy, part, observed)
            pieces.append((place, len(rows), observed))
            order.append(rows)
        back = torch.cat(order).argsort()
        return {name: column.index_select(0, back) for name, column in self._share(pieces).items()}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        pieces, order = [], []
        for place, policy, rows, part in self._present(view):
            scores = policy.score(part, _own(stats, place, rows))
            _check(policy, part, {"score": scores})
            pieces.append(scores)
            order.append(rows)
        return torch.cat(pieces).index_select(0, torch.cat(order).argsort())

    def joined(self, columns: list[Stats], heads: int) -> Stats:
        """The columns of all sequences, given in order and each of `heads` rows, as columns of the whole batch."""
        return self._share([(self._place(sequence), heads, own) for sequence, own in enumerate(columns)])

    def own(self, sequence: int, stats: Stats) -> Stats:
        """The columns of the policy of one sequence out of shared ones."""
        return _own(stats, self._place(sequence))

    def _place(self, sequence: int) -> int:
        return next(place for place, (_, sequences) in enumerate(self.parts) if sequence in sequences)

    def _present(self, view: View) -> Iterator[tuple[int, Policy, Int[Tensor, " rows"], View]]:
        """Each policy that has rows in this view, with its place among the parts, these rows and a view of them."""
        for place, (policy, sequences) in enumerate(self.parts):
            rows, part = view.part(sequences, policy.needs)
            if len(rows):
                yield place, policy, rows, part

    def _share(self, pieces: list[tuple[int, int, Stats]]) -> Stats:
        """The columns of pieces of a batch, each with the place of its policy and its number of rows, one below the other."""
        names: list[list[str]] = [[] for _ in self.parts]
        for place, _, own in pieces:
            names[place] = sorted(own)
        some = next((column for _, _, own in pieces for column in own.values()), None)
        shared = {}
        for k in range(max(map(len, names))):
            kth = [own[k] if k < len(own) else "" for own in names]
            rows = [own[kth[p]] if kth[p] else some.new_zeros(heads, some.shape[1]) for p, heads, own in pieces]
            shared[BETWEEN.join(kth)] = torch.cat(rows)
        return shared


def _own(stats: Stats, place: int, rows: Int[Tensor, " rows"] | None = None) -> Stats:
    named = ((name.split(BETWEEN)[place], column) for name, column in stats.items())
    return {name: column if rows is None else column.index_select(0, rows) for name, column in named if name}


def _check(policy: Policy, part: View, columns: Stats) -> None:
    """What the host checks of all, said of the one policy that it is about."""
    for name, column in columns.items():
        if column.shape != part.positions.shape:
            raise ValueError(
                f"{policy!r} gives {name!r} the shape {tuple(column.shape)}; the view asks for {tuple(part.positions.shape)}"
            )
    if changed := part.changed():
        raise ValueError(f"{policy!r} changed {', '.join(changed)} in place; a policy must be pure, so work on a clone")
