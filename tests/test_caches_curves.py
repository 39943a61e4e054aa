"""Hit curves: equal to a simulation at every capacity, whichever way they were found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fmlab as fm
from fmlab.caches.chats import ChatTraffic
from fmlab.caches.curves import hit_rows
from fmlab.caches.eviction import Eviction
from fmlab.caches.requests import accesses, coarser, load_requests
from fmlab.caches.stack import recency_distances, smaller_before
from fmlab.published import published

caches = fm.caches
STACKS = [caches.LRU(), caches.Belady()]
TRACES = st.lists(st.tuples(st.lists(st.integers(0, 14), max_size=9), st.integers(0, 15)), min_size=1, max_size=14)


def made(drawn):
    """Requests of blocks of 16 tokens, whose last is filled but for `short` tokens."""
    return [{"hash_ids": ids, "input_length": max(16 * len(ids) - short, 1)} for ids, short in drawn]


@pytest.mark.parametrize("policy", STACKS, ids=repr)
@given(drawn=TRACES.filter(lambda drawn: any(ids for ids, _ in drawn)), data=st.data())
@settings(max_examples=150, deadline=None)
def test_one_pass_equals_a_simulation_at_every_capacity(policy, drawn, data):
    requests = made(drawn)
    last = max(place for place, (ids, _) in enumerate(drawn) if ids)
    warm_up = data.draw(st.integers(0, last))
    curve = caches.hit_curve(requests, policy, range(1, 18), block=16, warm_up=warm_up)
    for place, capacity in enumerate(curve.capacity):
        one = caches.simulate(requests, policy, int(capacity), block=16, warm_up=warm_up)
        assert (curve.block[place], curve.token[place], curve.request[place]) == pytest.approx(
            (one.block, one.token, one.request), abs=1e-12
        )


@pytest.mark.parametrize("policy", [policy() for policy in Eviction.__subclasses__()], ids=repr)
def test_every_policy_has_a_curve_on_chats(policy):
    trace = accesses(ChatTraffic(chats=40).requests())
    capacities = [1, 7, 40, 200, 10**9]
    curve = caches.hit_curve(trace, policy, capacities)
    points = [caches.simulate(trace, policy, capacity) for capacity in capacities]
    for name in ("block", "token", "request"):
        assert getattr(curve, name) == pytest.approx([getattr(point, name) for point in points], abs=1e-12)


@pytest.mark.parametrize("policy", STACKS, ids=repr)
def test_without_capacities_the_curve_ends_where_nothing_more_is_found(policy):
    trace = accesses(ChatTraffic(chats=40).requests())
    curve = caches.hit_curve(trace, policy)
    assert curve.capacity.tolist() == list(range(1, len(curve.capacity) + 1))
    assert curve.block[-1] == caches.simulate(trace, policy, None).block > curve.block[-2]
    assert (np.diff(curve.block) >= 0).all() and (np.diff(curve.token) >= 0).all()


def test_nothing_is_found_where_nothing_returns():
    curve = caches.hit_curve([{"hash_ids": [1, 2], "input_length": 1024}], caches.LRU())
    assert curve.capacity.tolist() == [1] and curve.block.tolist() == curve.token.tolist() == [0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
@settings(deadline=None)
def test_recency_distances_are_what_lies_between(ids):
    distances = recency_distances(np.array(ids))
    for now, block in enumerate(ids):
        before = [t for t in range(now) if ids[t] == block]
        assert distances[now] == (len(set(ids[before[-1] : now])) if before else 0)


@given(st.permutations(range(37)), st.integers(0, 37))
def test_smaller_before_counts(order, n):
    values = np.array(order[:n], dtype=int)
    assert smaller_before(values).tolist() == [int((values[:k] < values[k]).sum()) for k in range(n)]


def test_a_stack_grows_beyond_its_first_size():
    ids = [*range(200), *range(199, -1, -1), *range(200)]
    trace = accesses([{"hash_ids": ids, "input_length": 512 * len(ids)}])
    distances = caches.Belady().distances(trace)
    assert distances.max() > 128
    for capacity in (3, 64, 65, 150):
        assert (0 < distances[distances <= capacity]).sum() == sum(caches.Belady().hits(trace, capacity))


def test_capacities_are_needed_and_checked():
    requests = [{"hash_ids": [1, 2], "input_length": 1024}]
    with pytest.raises(ValueError, match=r"SIEVE\(\) is simulated at each capacity; give them"):
        caches.hit_curve(requests, caches.SIEVE())
    with pytest.raises(ValueError, match="capacities is empty"):
        caches.hit_curve(requests, caches.LRU(), [])
    with pytest.raises(ValueError, match="capacity=0 blocks"):
        caches.hit_curve(requests, caches.LRU(), [4, 0])
    with pytest.raises(ValueError, match="warm_up=1 of 1"):
        caches.hit_curve(requests, caches.LRU(), [4], warm_up=1)


def test_rows_are_the_curves_of_every_policy_and_block_size():
    requests = ChatTraffic(chats=30).requests(block=128)
    policies, tokens = [caches.LRU(), caches.SIEVE()], [300, 20_000, 100_000]
    rows = hit_rows(requests, policies, tokens, block=128, factors=(1, 4))
    assert len(rows) == 2 * 3 + 2 * 2  # 300 tokens hold no block of 512
    with pytest.raises(ValueError, match="capacity_tokens=0; give 1 token or more"):
        hit_rows(requests, policies, [0, 300], block=128)
    for row in rows:
        factor = row["block_tokens"] // 128
        policy = {repr(each): each for each in policies}[row["policy"]]
        one = caches.simulate(coarser(requests, factor), policy, row["capacity"], block=row["block_tokens"])
        assert row["capacity"] == row["capacity_tokens"] // row["block_tokens"]
        assert (row["block"], row["token"], row["request"]) == pytest.approx(
            (one.block, one.token, one.request), abs=1e-12
        )


@pytest.mark.parametrize(
    ("name", "mean", "least", "most"), [("synthetic", 0.006, -0.012, 0.0), ("conversation", 0.031, -0.037, -0.019)]
)
def test_mooncake_s_figure_9_is_as_far_away_as_is_said(data, name, mean, least, most):
    theirs = published("prefix_hits").query("trace == @name")
    trace = accesses(load_requests(data / "mooncake" / f"{name}_trace.jsonl"))
    gap = (
        caches.hit_curve(trace, caches.LRU(), theirs["capacity_tokens"].to_numpy() // 512).token
        - theirs["value"].to_numpy()
    )
    assert [round(float(each), 3) for each in (abs(gap).mean(), gap.min(), gap.max())] == [mean, least, most]
