"""What a bag of heads holds where an allocation lets some hold more than others: no padding, so what is freed is free."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from .bag import Bag
from .core import Allocation, BudgetError, Policy, Stats, ask, check_numbers, select
from .quantise import Quantised
from .slots import Meter, Slots
from .view import View, normal_tensors


class Part(NamedTuple):
    """Heads that hold equally many entries, as a policy sees them."""

    rows: list[int]
    view: View
    over: bool  # their layers hold more than their budget


class Crowd(NamedTuple):
    """The heads of one layer of one sequence, which share a budget."""

    layer: int
    rows: list[int]


class Chosen(NamedTuple):
    """What `Ragged.choose` settled for one head."""

    stats: Stats
    evicted: Tensor | None  # (1, excess), or None: nothing


class Ragged:
    """The entries of a bag of heads under an allocation: each head has `Slots` of its own and holds what it is given.

    A call is stage, `parts`, `choose`, settle, as in `Slots`. A policy sees heads that hold equally many in one view, so
    nothing of what it sees is padding; then the allocation splits the budget of each layer, and every head keeps its best.
    Raises BudgetError where a policy pins more entries of a head than the allocation gives it.
    """

    def __init__(
        self,
        bag: Bag,
        allocation: Allocation,
        layers: int,
        meter: Meter | None = None,
        window: Int[Tensor, " heads"] | None = None,
        code: Quantised | None = None,
    ):
        self.bag, self.allocation, self.layers, self.meter = bag, allocation, layers, meter or Meter()
        crowds: dict[tuple[int, int], list[int]] = {}
        for row, (sequence, layer) in enumerate(zip(bag.sequence.tolist(), bag.layer.tolist(), strict=True)):
            crowds.setdefault((sequence, layer), []).append(row)
        self._crowds = [Crowd(layer, rows) for (_, layer), rows in crowds.items()]
        self._shares = [allocation.at(layer, layers) for layer in bag.layer.tolist()]  # on average over the layer
        self._most: list[int] | None = None  # what the model's own window lets a head hold
        self.limit = torch.tensor(self._shares, device=bag.layer.device)  # what the policy is promised
        heads = torch.arange(len(bag), device=bag.layer.device).split(1)
        self.rows = [
            Slots(bag.pick(head, False), share, self.meter, code=code)
            for head, share in zip(heads, self._shares, strict=True)
        ]
        self.window: Tensor | None = None
        self._new = 0
        if window is not None:
            self._look_through(window)

    def learn(self, groups: int, window: int | None) -> None:
        """As in `Slots`."""
        self.bag = replace(self.bag, groups=groups)
        if window is not None:
            with normal_tensors():
                self._look_through(torch.full_like(self.bag.layer, window))

    def stage(self, new: int, **data: Tensor) -> None:
        """Lay `new` entries beside those that each head holds: each of `data` is (heads, new, d)."""
        self._new = new
        for row, slots in enumerate(self.rows):
            slots.stage(new, **{name: arrived[row : row + 1] for name, arrived in data.items()})

    def staged(self, name: str, rows: list[int]) -> Tensor:
        """The entries held and the arriving ones of heads that hold equally many, (rows, held + new, d)."""
        if len(rows) == 1:
            return self.rows[rows[0]].staged(name)
        column = torch.cat([self.rows[row].staged(name) for row in rows])
        self.meter.pass_by(column)
        return column

    def staged_new(self, name: str) -> Tensor:
        """The arriving entries, (heads, new, d), in order of position."""
        return torch.cat([slots.staged_new(name) for slots in self.rows])

    def parts(self, show: Callable[[list[int], Tensor], dict], **rest) -> list[Part]:
        """The staged call as views of heads that hold equally many. `show(rows, positions)` gives the arguments of `View`
        that the host has for these rows, `rest` are those that are the same for all."""
        counts = [slots.staged_positions().shape[1] for slots in self.rows]
        alike: dict[tuple[int, bool], list[int]] = {}
        partial = set()  # of these, those that do not have all heads of a layer
        for crowd in self._crowds:
            over = sum(counts[row] for row in crowd.rows) > sum(self._shares[row] for row in crowd.rows)
            for row in crowd.rows:
                alike.setdefault((counts[row], over), []).append(row)
            if len(each := {(counts[row], over) for row in crowd.rows}) > 1:
                partial |= each
        return [self._part(rows, key[1], key not in partial, show, rest) for key, rows in alike.items()]

    def choose(self, policy: Policy, parts: list[Part]) -> list[Chosen]:
        """For each head the policy's columns and what the staged call evicts, without evicting it."""
        stats: dict[int, Stats] = {}
        scores: dict[int, Tensor] = {}
        for rows, view, over in parts:
            observed, scored = ask(policy, self._stats(policy, rows), view, over)
            for n, row in enumerate(rows):
                stats[row] = {name: column[n : n + 1] for name, column in observed.items()}
                if scored is not None:
                    scores[row] = scored[n]
        evicted: dict[int, Tensor] = {}
        with normal_tensors():
            for crowd in self._crowds:
                if crowd.rows[0] in scores:
                    evicted |= self._split(policy, crowd, [scores[row] for row in crowd.rows])
        return [Chosen(stats[row], evicted.get(row)) for row in range(len(self.rows))]

    def settle(self, chosen: list[Chosen]) -> None:
        """Commit the staged call with what `choose` returned."""
        for slots, (stats, evicted) in zip(self.rows, chosen, strict=True):
            slots.settle(stats, evicted)
            if evicted is not None:
                slots.budget = slots.held  # where it may hold more one day, it grows slot by slot

    @property
    def seen(self) -> int:
        """Tokens that every head has seen."""
        return min(slots.seen for slots in self.rows)

    @property
    def held(self) -> int:
        """Entries of the head that holds most."""
        return max(slots.held for slots in self.rows)

    @property
    def interrupted(self) -> bool:
        """Whether a call was staged and never settled."""
        return any(slots.interrupted or slots.seen != self.rows[0].seen for slots in self.rows)

    @property
    def places(self) -> Int[Tensor, "heads slots"]:
        """As in `Slots`, -1 also where a head has no such slot."""
        places = [slots.places for slots in self.rows]
        most = max(row.shape[1] for row in places)
        return torch.cat([pad(row, (0, most - row.shape[1]), value=-1) for row in places])

    def expiry(self, seen: int | None = None) -> Int[Tensor, "heads seen"]:
        """As in `Slots`."""
        return torch.cat([slots.expiry(self.seen if seen is None else seen) for slots in self.rows])

    @property
    def nbytes(self) -> int:
        """Allocated bytes of the data columns, empty slots included."""
        return sum(slots.nbytes for slots in self.rows)

    @property
    def nominal_nbytes(self) -> int:
        """Bytes of the data of the entries held: what the budget promises."""
        return sum(slots.nominal_nbytes for slots in self.rows)

    @property
    def overhead_nbytes(self) -> int:
        """Allocated bytes of everything else."""
        return sum(slots.overhead_nbytes for slots in self.rows)

    def take(self, rows: Int[Tensor, " taken"]) -> None:
        """Replace what the heads hold by what those at `rows` hold."""
        taken = [self.rows[row].twin(mine.bag, mine.window) for mine, row in zip(self.rows, rows.tolist(), strict=True)]
        for slots in self.rows:
            slots.release()
        self.rows = taken

    def _look_through(self, window: Int[Tensor, " heads"]) -> None:
        """No head holds more than the model's own sliding window looks back."""
        self.window, self._most = window, [max(1, width - 1) for width in window.tolist()]
        self._shares = [min(pair) for pair in zip(self._shares, self._most, strict=True)]
        for slots, width, share in zip(self.rows, window.split(1), self._shares, strict=True):
            slots.window, slots.budget = width, share

    def _part(self, rows: list[int], over: bool, whole: bool, show: Callable, rest: dict) -> Part:
        with normal_tensors():
            index = torch.tensor(rows, device=self.bag.layer.device)
            positions = torch.cat([self.rows[row].staged_positions() for row in rows])
            window = None if self.window is None else self.window[index]
            newest = self.rows[0].seen + self._new - 1
            given = {"newest": newest, "window": window, **rest, **show(rows, positions)}
            return Part(rows, View(self.bag.pick(index, whole), positions, self._new, self.limit[index], **given), over)

    def _stats(self, policy: Policy, rows: list[int]) -> Stats:
        columns = [self.rows[row].staged_stats() for row in rows]
        if any(each.keys() != columns[0].keys() for each in columns):
            raise ValueError(
                f"{policy!r} remembers other columns for some heads than for others; return the same for all"
            )
        return joined(columns)

    def _split(self, policy: Policy, crowd: Crowd, scores: list[Tensor]) -> dict[int, Tensor]:
        """What each head of a layer loses, (1, excess)."""
        places = pad_sequence([self.rows[row].staged_positions()[0] for row in crowd.rows], True, -1)
        padded = pad_sequence(scores, True, -torch.inf)
        shown = pad_sequence([each.clamp(min=torch.finfo(each.dtype).min) for each in scores], True, -torch.inf)
        try:
            check_numbers(padded, places)
            shares = self._checked(self.allocation.split(shown, crowd.layer, self.layers), crowd, shown)
            kept = select(padded, shares, places)
        except (BudgetError, ValueError) as error:
            raise type(error)(f"{policy!r} under {self.allocation!r} in layer {crowd.layer}: {error}") from None
        lost = [(~mask[: len(each)]).nonzero().T for mask, each in zip(kept, scores, strict=True)]
        return {row: each for row, each in zip(crowd.rows, lost, strict=True) if each.shape[1]}

    def _checked(self, shares: object, crowd: Crowd, shown: Tensor) -> Int[Tensor, " heads"]:
        """What an allocation gave, if it is a split of the budget of this layer."""
        heads, layer = len(crowd.rows), crowd.layer
        if not isinstance(shares, Tensor) or shares.shape != (heads,) or shares.dtype != torch.int64:
            raise ValueError(f"split gave {shares!r}; give one int64 a head, shape ({heads},)")
        if int(shares.min()) < 1:
            raise ValueError(f"split gave {shares.tolist()}; every head must hold at least one entry")
        if self._most is not None:
            shares = shares.clamp(max=self._most[crowd.rows[0]])
        held = int(shares.minimum((shown > -torch.inf).sum(-1)).sum())
        if held > (all_told := sum(self._shares[row] for row in crowd.rows)):
            raise ValueError(
                f"split gave {shares.tolist()}, {held} entries of {all_told} in layer {layer}; give no more"
            )
        return shares


def joined(columns: list[Stats]) -> Stats:
    """The columns of several heads that hold equally many entries, one head after the other."""
    with normal_tensors():
        return {name: torch.cat([each[name] for each in columns]) for name in columns[0]}
