import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmlab.bag import Bag
from fmlab.core import Policy
from fmlab.slots import Meter, Slots, split

CALLS = st.lists(st.sampled_from([1, 1, 1, 1, 2, 3, 7, 20]), min_size=1, max_size=25)


class Lottery(Policy):
    """Evicts by lot, other entries in each head, and checks that its columns stay with their entries."""

    def __repr__(self):
        return "Lottery()"

    def observe(self, view, stats):
        arriving = view.age < view.new
        place = view.positions.clone()
        if "place" in stats:
            assert (stats["place"][arriving] == 0).all() and (stats["twice"][arriving] == 0).all()
            assert torch.equal(stats["place"].masked_fill(arriving, 0), place.masked_fill(arriving, 0))
            assert torch.equal(stats["twice"].masked_fill(arriving, 0), 2.0 * place.masked_fill(arriving, 0))
        return {"place": place, "twice": 2.0 * place}

    def score(self, view, stats):
        assert torch.equal(stats["place"], view.positions)
        assert torch.equal(view.keys[..., 0].long(), view.positions)  # the data stay with their entries too
        assert torch.equal(view.values[..., 1].long(), -view.positions)
        return lots(view.layer * 10 + view.head, view.positions)


def lots(row, place):
    return ((row[:, None] * 7919 + place * 104729) % 1009).float()


def run(slots, calls, policy=None):
    """Yield the slots after every call."""
    heads = len(slots.bag)
    for new in calls:
        places = torch.arange(slots.seen, slots.seen + new).float().expand(heads, new)
        keys, values = torch.stack([places, places], -1), torch.stack([places, -places], -1)
        slots.stage(new, keys=keys, values=values)
        view = slots.view(
            scaling=1.0,
            keys=lambda: slots.staged("keys"),
            values=lambda: slots.staged("values"),
            queries=lambda new=new: torch.zeros(heads, new, 2),
        )
        slots.settle(*slots.choose(policy or Lottery(), view))
        yield slots


def by_hand(bag, calls, budget, window=None):
    """The same with lists: for each head the positions held and the expiry, after every call."""
    rows = [int(10 * layer + head) for layer, head in zip(bag.layer, bag.head, strict=True)]
    held, expiry, seen = [[] for _ in rows], [[] for _ in rows], 0
    for new in calls:
        for row, (mine, gone) in enumerate(zip(held, expiry, strict=True)):
            mine += range(seen, seen + new)
            gone += [None] * new
            newest, w = seen + new - 1, None if window is None else window[row]

            def worth(place, row=rows[row], newest=newest, w=w):
                slid_out = w is not None and newest - place >= w - 1
                return (-1 if slid_out else (row * 7919 + place * 104729) % 1009, place)

            while len(mine) > budget:
                loser = min(mine, key=worth)
                mine.remove(loser)
                gone[loser] = seen + new
        seen += new
        full = [[seen + 1 if e is None else e for e in gone] for gone in expiry]
        if window is not None:
            full = [[min(e, place + w) for place, e in enumerate(gone)] for gone, w in zip(full, window, strict=True)]
        yield [sorted(mine) for mine in held], full


@settings(max_examples=60, deadline=None)
@given(CALLS, st.integers(1, 12), st.sampled_from([None, [9, 9, 30, 4], [5, 100, 1, 12]]))
def test_slots_hold_what_a_list_would_hold(calls, budget, window):
    bag = Bag.of(1, [0, 1], 2, 1)
    slots = Slots(bag, budget, window=None if window is None else torch.tensor(window))
    for now, (held, expiry) in zip(run(slots, calls), by_hand(bag, calls, budget, window), strict=True):
        assert [sorted(row) for row in now.positions.tolist()] == held
        assert [sorted(p for p in row if p >= 0) for row in now.places.tolist()] == held
        assert now.expiry().tolist() == expiry
        assert now.held == len(held[0]) and now.seen == len(expiry[0]) and not now.interrupted


@settings(max_examples=40, deadline=None)
@given(CALLS, st.integers(1, 12))
def test_bytes_are_those_of_the_tensors_and_the_peak_is_never_below_them(calls, budget):
    meter = Meter()
    both = [Slots(Bag.of(1, [layer], 3, 1), budget, meter) for layer in (0, 1)]
    for new, *_ in zip(calls, *(run(slots, calls) for slots in both), strict=True):
        sizes = [c.untyped_storage().nbytes() for slots in both for c in slots.data.values()]
        assert sum(slots.nbytes for slots in both) == sum(sizes)
        now = sum(slots.nbytes + slots.overhead_nbytes for slots in both)
        assert meter.now == now <= meter.peak
        row = 3 * 2 * 2 * 4  # heads, keys and values, dimension, float32
        assert meter.peak >= row * new  # the chunk passed through
        if new == 1:
            assert max(slots.nbytes for slots in both) <= (budget + 1) * row
        elif slots_full(both, budget):
            assert all(slots.nbytes == (budget + 1) * row for slots in both)


def slots_full(both, budget):
    return both[0].seen > budget and both[0].held == budget


def test_the_peak_holds_through_the_growth_of_the_record():
    slots = Slots(Bag.of(1, [0], 2, 1), 4)
    for now in run(slots, [1] * 600):
        assert now.meter.peak >= now.nbytes + now.overhead_nbytes
    assert slots.held == 4


def test_an_interrupted_call_has_not_happened():
    for calls, new in ([5, 1, 1], 1), ([5, 1, 1], 3), ([1, 1], 1), ([3], 1):
        slots = Slots(Bag.of(1, [0], 2, 1), 4)
        *_, now = run(slots, calls)
        before = (
            [sorted(p for p in row if p >= 0) for row in now.places.tolist()],
            now.expiry().tolist(),
            now.held,
            now.seen,
        )
        column = torch.full((2, new, 2), float(now.seen))
        now.stage(new, keys=column, values=column)
        after = (
            [sorted(p for p in row if p >= 0) for row in now.places.tolist()],
            now.expiry().tolist(),
            now.held,
            now.seen,
        )
        assert now.interrupted and before == after


def test_take_moves_everything_that_a_head_holds():
    slots = Slots(Bag.of(1, [0, 1, 2], 1, 1), 4)  # three layers, so that the lots differ
    lists = list(run(slots, [6, 1, 1]))[-1].positions.tolist()
    expiry = slots.expiry().tolist()
    slots.take(torch.tensor([2, 2, 0]))
    assert slots.positions.tolist() == [lists[2], lists[2], lists[0]]
    assert slots.expiry().tolist() == [expiry[2], expiry[2], expiry[0]]
    for _ in run(slots, [1, 1, 4, 1]):  # the policy checks that columns and data came along
        pass
    assert slots.held == 4


def test_the_expiry_as_it_stood_earlier():
    slots = Slots(Bag.of(1, [0], 1, 1), 3)
    stood = [now.expiry().tolist() for now in run(slots, [1] * 9)]
    assert [slots.expiry(seen).tolist() for seen in range(1, 10)] == stood


@pytest.mark.parametrize(
    ("tokens", "prefill", "calls"),
    [
        (4, 1, [1, 1, 1, 1]),
        (5, 3, [3, 1, 1]),
        (3, 9, [3]),
        (6, (2, 3), [2, 3, 1]),
        (6, [4, 4, 4], [4, 2]),
        (2, (), [1, 1]),
        (0, 5, []),
    ],
)
def test_split(tokens, prefill, calls):
    assert split(tokens, prefill) == calls


@pytest.mark.parametrize("prefill", [0, -2, True, (3, 0), (2, 1.5), ("3",)])
def test_no_call_of_less_than_a_token(prefill):
    with pytest.raises(
        ValueError, match="prefill=.*; give the size of the first call, or of the first calls, each >= 1"
    ):
        inspect.unwrap(split)(9, prefill)


def test_columns_may_come_and_go():
    class Moody(Policy):
        def observe(self, view, stats):
            return {f"of_{view.new}": view.age.float()} if int(view.positions.max()) % 3 else {}

        def score(self, view, stats):
            return -view.age.float()

    slots = Slots(Bag.of(1, [0], 2, 1), 4)
    for now in run(slots, [2, 1, 5, 1, 1, 1, 2, 1], Moody()):
        assert now.positions.sort(-1).values.tolist() == [list(range(max(0, now.seen - 4), now.seen))] * 2
        assert all(len(column) == 2 for column in now.stats.values())


def test_growth_below_the_budget_copies_seldom():
    slots, sizes = Slots(Bag.of(1, [0], 1, 1), 1_000), []
    for now in run(slots, [1] * 200):
        sizes.append(now.places.shape[1])
    assert len(set(sizes)) == 4 and sizes[-1] >= 200
    assert slots.places[0, :200].tolist() == list(range(200)) and (slots.places[0, 200:] == -1).all()
