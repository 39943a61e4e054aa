"""What a bag of heads holds: slots that are overwritten rather than gathered, and the expiry of all that ever arrived."""

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from .bag import Bag
from .core import Policy, Stats, step
from .quantise import Quantised
from .view import View, normal_tensors, ordinary

NEVER = 1 << 62  # the expiry of an entry that is still held; a power of two, since `pad` passes it as a double
GROWTH = 64  # slots added at a time while a head is below its budget: one copy in 64 steps
RECORD = 512  # tokens by which the record of expiries grows


class Meter:
    """Bytes held now by several `Slots`, and the most there ever were."""

    def __init__(self):
        self.now = self.peak = 0

    def change(self, nbytes: int) -> None:
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    def pass_by(self, *tensors: Tensor) -> None:
        """Count tensors that live only until the call is over."""
        self.peak = max(self.peak, self.now + sum(tensor.nbytes for tensor in tensors))


class _Staged(NamedTuple):
    new: int
    positions: Tensor  # (heads, held + new)
    data: dict[str, Tensor]  # (heads, held + new, d)
    stats: dict[str, Tensor]  # (heads, held + new), zero where new
    arrived: dict[str, Tensor]  # (heads, new, d)


class Slots:
    """The entries of a bag of heads under one budget. Each head holds equally many (`Ragged` is for those that do not).

    A call is two moves: `stage` lays the arriving entries beside those held, without touching what is held; `settle`
    commits what the policy chose. A call that is interrupted between them has not happened.
    Attention does not care in which order entries stand, so at the budget there is one free slot a head, that of the
    entry evicted last, and the newcomer overwrites it: O(1) bytes a step.
    """

    def __init__(
        self,
        bag: Bag,
        budget: int,
        meter: Meter | None = None,
        window: Int[Tensor, " heads"] | None = None,
        code: Quantised | None = None,
    ):
        self.bag, self.budget, self.meter, self.window, self.code = bag, budget, meter or Meter(), window, code
        device = bag.layer.device
        self.held = self.seen = 0
        self.data: dict[str, Tensor] = {}  # (heads, slots, d)
        self.stats: dict[str, Tensor] = {}  # (heads, slots) or shorter, zero where free
        self.limit = torch.full((len(bag),), budget, dtype=torch.int64, device=device)  # what the policy was promised
        self._positions = torch.empty(len(bag), 0, dtype=torch.int64, device=device)  # (heads, slots)
        self._free: Tensor | None = None  # (heads, 1): the free one of the first held + 1; None where it is the last
        self._expiry = torch.empty(len(bag), 0, dtype=torch.int64, device=device)
        self._staged: _Staged | None = None
        self._unpacked: dict[str, Tensor] = {}  # what was read of the staged call, where it is stored quantised
        self._counted = 0

    def stage(self, new: int, **data: Tensor) -> None:
        """Lay `new` entries beside those held: each of `data` is (heads, new, d). Where entries are stored quantised, those
        that arrive are still read as they came."""
        self._unpacked.clear()
        total, arrived = self.held + new, data
        with normal_tensors():
            if self.code is not None:
                data = self.code.pack(data)
            if self._expiry.shape[1] < self.seen + new:
                self._expiry = pad(self._expiry, (0, max(new, RECORD)), value=NEVER)
                self._count()
            if new > 1:
                self._close_gap()
            stats = {k: c if c.shape[1] == total else pad(c[:, : self.held], (0, new)) for k, c in self.stats.items()}
            if new > 1:
                places = torch.arange(self.seen, self.seen + new, device=self._positions.device)
                positions = torch.cat([self._positions[:, : self.held], places.expand(len(self.bag), new)], 1)
                columns = {name: self._beside(name, column) for name, column in data.items()}
                self._count(positions, *columns.values())
            else:
                self._write(data)
                positions, columns = _first(total, self._positions), {k: _first(total, c) for k, c in self.data.items()}
            self._staged = _Staged(new, positions, columns, stats, arrived)

    def staged(self, name: str) -> Tensor:
        """The entries held and the arriving ones, (heads, held + new, d)."""
        return self._staged.data[name] if self.code is None else self._unpack(name)

    def staged_new(self, name: str) -> Tensor:
        """The arriving entries, (heads, new, d), in order of position."""
        return self._staged.arrived[name]

    def staged_positions(self) -> Int[Tensor, "heads total"]:
        """The places of the entries held and the arriving ones."""
        return self._staged.positions

    def staged_stats(self) -> Stats:
        """The policy's columns, zero where new."""
        return self._staged.stats

    def view(self, **rest) -> View:
        """The view of the staged call; `rest` are the arguments of `View` that only the host knows."""
        new = self._staged.new
        newest = self.seen + new - 1
        return View(self.bag, self._staged.positions, new, self.limit, newest=newest, window=self.window, **rest)

    def learn(self, groups: int, window: int | None) -> None:
        """Take in what only the attention of the model knows: its query heads a KV head and its own sliding window.

        A sliding layer never looks at more than window - 1 earlier entries, so no more are held.
        """
        self.bag = replace(self.bag, groups=groups)
        if window is not None:
            with normal_tensors():
                self.window = torch.full_like(self.bag.layer, window)
            self.budget = min(self.budget, max(1, window - 1))

    def has(self, name: str) -> bool:
        """Whether the staged call has a data column of this name."""
        return name in self._staged.data

    def adopt(self, name: str, column: Float[Tensor, "heads total d"]) -> None:
        """Keep one more data column from the staged call on."""
        self._staged.data[name] = column
        if self._staged.new == 1:
            self.data[name] = pad(column, (0, 0, 0, self._positions.shape[1] - column.shape[1]))

    def choose(self, policy: Policy, view: View) -> tuple[Stats, Int[Tensor, "heads excess"] | None]:
        """Ask the policy what the staged call evicts, without evicting it."""
        return step(policy, self._staged.stats, view, self.budget)

    def settle(self, stats: Stats, evicted: Int[Tensor, "heads excess"] | None) -> None:
        """Commit the staged call with what `choose` returned."""
        now, seen = self._staged, self.seen + self._staged.new
        positions, data, free, held = self._positions, self.data, None, self.held + now.new
        with normal_tensors():
            if evicted is not None:
                self._expiry.scatter_(1, now.positions.gather(1, evicted), seen)
                held -= evicted.shape[1]
            if evicted is not None and (now.new > 1 or evicted.shape[1] > 1):
                positions, data, stats = self._compact(evicted, stats)
            elif now.new > 1:
                positions, data, stats = self._keep(stats)
            elif evicted is not None:
                free = evicted
                stats = {name: column.scatter(1, evicted, 0) for name, column in stats.items()}
            else:
                stats = {name: column.clone() for name, column in stats.items()}
        steady = (
            now.new == 1 and self._free is not None and free is not None
        )  # then every tensor was replaced by one of its size
        self._positions, self.data, self.stats, self._free = positions, data, stats, free
        self.held, self.seen, self._staged = held, seen, None
        self._unpacked.clear()
        if not steady:
            self._count()

    @property
    def interrupted(self) -> bool:
        """Whether a call was staged and never settled."""
        return self._staged is not None

    @property
    def positions(self) -> Int[Tensor, "heads held"]:
        """The place in the original sequence of each entry held, in slot order."""
        if self._free is None:
            return self._positions[:, : self.held]
        used = self._positions[:, : self.held + 1]
        return used[torch.ones_like(used, dtype=torch.bool).scatter_(1, self._free, False)].view(len(self.bag), -1)

    @property
    def places(self) -> Int[Tensor, "heads slots"]:
        """The same slot by slot, -1 where a slot is free."""
        used = self.held if self._free is None else self.held + 1
        places = pad(self._positions[:, :used], (0, self._positions.shape[1] - used), value=-1)
        return places if self._free is None else places.scatter_(1, self._free, -1)

    def expiry(self, seen: int | None = None) -> Int[Tensor, "heads seen"]:
        """The expiry of the first `seen` entries as it stood after that many queries: `seen + 1` where still held."""
        seen = self.seen if seen is None else seen
        expiry = self._expiry[:, :seen]
        if self.window is not None:  # a sliding layer stops looking before anything is evicted
            expiry = torch.minimum(expiry, torch.arange(seen, device=expiry.device) + self.window[:, None])
        return expiry.clamp(max=seen + 1)

    @property
    def nbytes(self) -> int:
        """Allocated bytes of the data columns, empty slots included."""
        return sum(column.untyped_storage().nbytes() for column in self.data.values())

    @property
    def nominal_nbytes(self) -> int:
        """Bytes of the data of the entries held: what the budget promises."""
        return sum(column[:, : self.held].nbytes for column in self.data.values())

    @property
    def overhead_nbytes(self) -> int:
        """Allocated bytes of everything else: positions, the policy's columns, the record of expiries."""
        return sum(t.untyped_storage().nbytes() for t in (self._positions, self._expiry, *self.stats.values()))

    def take(self, rows: Int[Tensor, " taken"]) -> None:
        """Replace the heads by those at `rows` (a beam search moves whole sequences about)."""
        with normal_tensors():
            self._positions, self._expiry = self._positions[rows], self._expiry[rows]
            self._free = None if self._free is None else self._free[rows]
            self.data = {name: column[rows] for name, column in self.data.items()}
            self.stats = {name: column[rows] for name, column in self.stats.items()}

    def twin(self, bag: Bag, window: Int[Tensor, " heads"] | None) -> "Slots":
        """The same entries in tensors of their own, for other heads."""
        twin = copy(self)
        twin.bag, twin.window, twin._counted = bag, window, 0
        twin.take(torch.arange(len(bag), device=bag.layer.device))
        twin._count()
        return twin

    def release(self) -> None:
        """Tell the meter that these slots are no longer used."""
        self.meter.change(-self._counted)
        self._counted = 0

    def narrow(self, sequences: Int[Tensor, " kept"]) -> None:
        """Give up all sequences but these, in the order given; their numbers stay."""
        rows = (self.bag.sequence == sequences[:, None]).nonzero()[:, 1]
        self.take(rows)
        with normal_tensors():
            self.bag = self.bag.pick(rows, self.bag.whole)
            self.limit = self.limit[rows]
            self.window = None if self.window is None else self.window[rows]
        self._count()

    @classmethod
    def join(cls, several: list["Slots"], meter: Meter, share: Callable[[list[Stats]], Stats]) -> "Slots":
        """One bag of several sequences that hold equally many entries under one budget and have seen equally much.

        Each is the slots of one sequence, settled after a call of several tokens; together they are numbered from 0.
        `share` makes one set of columns of those of each.
        """
        first = several[0]
        bags = [replace(each.bag, sequence=torch.full_like(each.bag.sequence, i)) for i, each in enumerate(several)]
        window = None if first.window is None else torch.cat([each.window for each in several])
        joined = cls(Bag.join(bags), first.budget, meter, window, first.code)
        joined.limit = torch.cat([each.limit for each in several])
        joined.held, joined.seen = first.held, first.seen
        joined._positions = torch.cat([each._positions for each in several])
        joined._expiry = torch.cat([each._expiry for each in several])
        joined.data = {name: torch.cat([each.data[name] for each in several]) for name in first.data}
        joined.stats = share([each.stats for each in several])
        joined._count()
        return joined

    def alone(self, sequence: int, meter: Meter, own: Callable[[Stats], Stats]) -> "Slots":
        """An independent copy of one sequence; `own` gives its columns out of those of all."""
        rows, bag = self.bag.part((sequence,))
        window = None if self.window is None else self.window[rows]
        only = Slots(replace(bag, sequence=torch.zeros_like(bag.sequence)), self.budget, meter, window, self.code)
        only.limit, only.held, only.seen = self.limit[rows], self.held, self.seen
        only._positions, only._expiry = self._positions[rows], self._expiry[rows]
        only._free = None if self._free is None else self._free[rows]
        only.data = {name: column[rows] for name, column in self.data.items()}
        only.stats = own({name: column[rows] for name, column in self.stats.items()})
        only._count()
        return only

    def _unpack(self, name: str) -> Tensor:
        """What is stored, unpacked, and what arrived, as it came."""
        if name not in self._unpacked:
            now, exact = self._staged, self._staged.arrived[name]
            with normal_tensors():
                if now.new == 1:
                    vectors = self.code.unpack(now.data, name)
                    slot = (
                        exact.new_full((len(exact), 1), self.held, dtype=torch.int64)
                        if self._free is None
                        else self._free
                    )
                    vectors.scatter_(1, slot[..., None].expand_as(exact), exact)
                else:
                    held = {key: column[:, : self.held] for key, column in now.data.items()}
                    vectors = torch.cat([self.code.unpack(held, name), exact], 1) if self.held else exact
            self._unpacked[name] = vectors
            self.meter.pass_by(*self._unpacked.values())
        return self._unpacked[name]

    def _write(self, data: dict[str, Tensor]) -> None:
        """Lay one arriving entry a head into the free slot."""
        if self._free is not None:
            self._positions.scatter_(1, self._free, self.seen)
            for name, arrived in data.items():
                self.data[name].scatter_(1, self._free[..., None].expand(arrived.shape), arrived)
            return
        if self.held == self._positions.shape[1]:
            self._grow(max(1, min(GROWTH, self.budget + 1 - self.held)), data)
        self._positions[:, self.held] = self.seen
        for name, arrived in data.items():
            self.data[name][:, self.held] = arrived[:, 0]

    def _grow(self, slots: int, arriving: dict[str, Tensor]) -> None:
        old = [self._positions, *self.data.values()]
        held = self.data or {name: arrived[:, :0] for name, arrived in arriving.items()}
        self._positions = pad(self._positions, (0, slots))
        self.data = {name: pad(column, (0, 0, 0, slots)) for name, column in held.items()}
        self._count(*old)
        self._count()

    def _close_gap(self) -> None:
        """Let the last of the first held + 1 slots be the free one."""
        if self._free is None:
            return
        last = slice(self.held, self.held + 1)
        self._positions.scatter_(1, self._free, self._positions[:, last].clone())
        for column in self.data.values():
            column.scatter_(1, self._free[..., None].expand(-1, 1, column.shape[-1]), column[:, last].clone())
        for column in self.stats.values():
            column.scatter_(1, self._free, column[:, last].clone())
        self._free = None

    def _beside(self, name: str, arrived: Tensor) -> Tensor:
        if self.held:
            return torch.cat([self.data[name][:, : self.held], arrived], 1)
        return ordinary(arrived)

    def _keep(self, stats: Stats) -> tuple[Tensor, dict, dict]:
        now = self._staged
        data = {name: _own(column) for name, column in now.data.items()}
        return now.positions, data, {name: column.clone() for name, column in stats.items()}

    def _compact(self, evicted: Int[Tensor, "heads excess"], stats: Stats) -> tuple[Tensor, dict, dict]:
        now = self._staged
        keep = torch.ones_like(now.positions, dtype=torch.bool).scatter_(1, evicted, False)
        kept = keep.nonzero()[:, 1].view(len(self.bag), -1)
        held = kept.shape[1]
        data = {}
        for name, column in now.data.items():
            index = kept[..., None].expand(*kept.shape, column.shape[-1])
            data[name] = column.new_zeros(len(self.bag), held + 1, column.shape[-1])  # one more, for a newcomer
            torch.gather(column, 1, index, out=data[name][:, :held])
        self._count(now.positions, *now.data.values(), *data.values())
        stats = {name: column.gather(1, kept) for name, column in stats.items()}
        return pad(now.positions.gather(1, kept), (0, 1)), data, stats

    def _count(self, *passing: Tensor) -> None:
        """Tell the meter what is allocated now; `passing` are tensors that live only until the call is settled."""
        now = self.nbytes + self.overhead_nbytes + sum(tensor.nbytes for tensor in passing)
        self.meter.change(now - self._counted)
        self._counted = now


def split(tokens: int, prefill: int | Iterable[int]) -> list[int]:
    """The sizes of the calls that read `tokens` tokens: first those of `prefill`, then one by one."""
    sizes = [prefill] if isinstance(prefill, int) else list(prefill)
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"prefill={prefill!r}; give the size of the first call, or of the first calls, each >= 1")
    calls, left = [], tokens
    for size in sizes:
        if left:
            calls.append(min(size, left))
            left -= calls[-1]
    return calls + [1] * left


def _first(count: int, column: Tensor) -> Tensor:
    return column if column.shape[1] == count else column[:, :count]


def _own(column: Tensor) -> Tensor:
    """The tensor itself, or a copy where it is a piece of a larger one, which it would keep alive."""
    whole = column.is_contiguous() and column.untyped_storage().nbytes() == column.nbytes
    return column if whole else column.clone(memory_format=torch.contiguous_format)
