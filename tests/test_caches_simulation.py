"""Hit ratios: what each counts, over which window, and what is refused."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fmlab as fm
from fmlab.caches.eviction import Eviction
from fmlab.caches.requests import accesses, load_requests
from fmlab.caches.simulation import HitRatios, check_capacity

caches = fm.caches
PREFIXES = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(1, 16)), min_size=1, max_size=12)


def prompt(chat, blocks, last):
    """A prompt of a chat whose last block holds `last` of 16 tokens."""
    full = [100 * chat + k for k in range(blocks - 1)]
    return {"hash_ids": [*full, 100 * chat + blocks - 1 + 50 * (last < 16)], "input_length": 16 * (blocks - 1) + last}


def test_the_three_ratios_by_hand():
    requests = [
        {"hash_ids": [1, 2, 3], "input_length": 40},
        {"hash_ids": [1, 2, 4], "input_length": 41},
        {"hash_ids": [5, 2], "input_length": 32},  # 2 hits, but behind a miss it saves nothing
        {"hash_ids": [1, 2, 3], "input_length": 40},
    ]
    found = caches.simulate(requests, caches.LRU(), 10, block=16)
    assert found == HitRatios(
        block=6 / 11,
        token=(32 + 40) / 153,
        request=(32 / 41 + 40 / 40) / 4,
        requests=4,
        accesses=11,
        tokens=153,
        cold=5,
        warm_up=0,
    )
    warm = caches.simulate(requests, caches.LRU(), 10, block=16, warm_up=1)
    assert (warm.block, warm.token, warm.request) == (6 / 8, 72 / 113, (32 / 41 + 1) / 3)
    assert (warm.requests, warm.accesses, warm.tokens, warm.cold, warm.warm_up) == (3, 8, 113, 2, 1)


@pytest.mark.parametrize("policy", [policy() for policy in Eviction.__subclasses__()], ids=repr)
@given(chats=PREFIXES, capacity=st.integers(1, 12), data=st.data())
@settings(max_examples=30, deadline=None)
def test_ratios_follow_from_the_hits_one_by_one(policy, chats, capacity, data):
    requests = [prompt(*chat) for chat in chats]
    warm_up = data.draw(st.integers(0, len(requests) - 1))
    trace = accesses(requests, 16)
    outcome = list(policy.hits(trace, capacity))
    found = caches.simulate(requests, policy, capacity, block=16, warm_up=warm_up)
    block, token, request, tokens = [], 0, [], 0
    for place, each in enumerate(requests):
        mine = [outcome.pop(0) for _ in each["hash_ids"]]
        if place < warm_up:
            continue
        lead = mine.index(0) if 0 in mine else len(mine)
        saved = min(16 * lead, each["input_length"])
        block += mine
        token, tokens = token + saved, tokens + each["input_length"]
        request.append(saved / each["input_length"])
    assert found.block == pytest.approx(np.mean(block)) and found.token == token / tokens
    assert found.request == pytest.approx(np.mean(request)) and found.accesses == len(block)
    assert found == caches.simulate(trace, policy, capacity, warm_up=warm_up)


def test_a_block_twice_in_one_request_is_two_accesses():
    found = caches.simulate([{"hash_ids": [1, 1, 2], "input_length": 1536}], caches.LRU(), 2)
    assert (found.block, found.token, found.cold) == (1 / 3, 0, 2)


def test_a_capacity_below_one_request_is_a_cache_too():
    requests = [{"hash_ids": [1, 2, 3], "input_length": 1536}] * 2
    assert caches.simulate(requests, caches.LRU(), 2).block == 0
    assert caches.simulate(requests, caches.LRU(), 3).block == 0.5
    assert caches.simulate(requests, caches.LRU(), 10**12) == caches.simulate(requests, caches.LRU(), None)


@pytest.mark.parametrize("capacity", [0, -1, True, 2.0, float("inf"), "many"])
def test_capacities_that_are_none_are_refused(capacity):
    with pytest.raises(
        ValueError, match=re.escape(f"capacity={capacity!r} blocks; give a whole number from 1, or None")
    ):
        check_capacity(capacity)


def test_windows_that_are_none_are_refused():
    one = [{"hash_ids": [1], "input_length": 512}]
    for warm_up in (-1, 1, 7):
        with pytest.raises(ValueError, match=f"warm_up={warm_up} of 1 requests; leave at least one to count"):
            caches.simulate(one, caches.LRU(), 1, warm_up=warm_up)
    with pytest.raises(ValueError, match="warm_up=1 leaves requests without blocks only"):
        caches.simulate([*one, {"hash_ids": [], "input_length": 5}], caches.LRU(), 1, warm_up=1)
    with pytest.raises(ValueError, match="capacity=0 blocks"):
        caches.simulate(one, caches.LRU(), 0)
    with pytest.raises(ValueError, match="block=16, but the accesses are of blocks of 512"):
        caches.simulate(accesses(one), caches.LRU(), 1, block=16)
    with pytest.raises(ValueError, match="0 requests access no block"):
        caches.simulate([], caches.LRU(), 1)


@pytest.mark.parametrize(
    ("name", "known"), [("conversation", [0.366, 0.374, 0.409]), ("synthetic", [0.640, 0.651, 0.432])]
)
def test_without_bound_the_ratios_are_the_known_ones(data, name, known):
    found = caches.simulate(load_requests(data / "mooncake" / f"{name}_trace.jsonl"), caches.LRU(), None)
    assert np.round([found.block, found.token, found.request], 3).tolist() == known
    assert found.block == 1 - found.cold / found.accesses


@dataclass(frozen=True)
class Says(Eviction):
    """A policy of a reader's own, which says what it was made with."""

    said: object

    def hits(self, trace, capacity):
        return self.said


REQUESTS = [{"hash_ids": [1, 2], "input_length": 1024}] * 2


@pytest.mark.parametrize("wrong", [np.array([0, 1, 2, 0]), np.ones(3), bytearray(3), [True], [[True] * 4]], ids=repr)
def test_a_policy_that_does_not_answer_for_every_access_is_named(wrong):
    with pytest.raises(ValueError, match=r"Says\(.*hits\(\) gave .* one for each of the 4 accesses"):
        caches.simulate(REQUESTS, Says(wrong), 1)


@pytest.mark.parametrize(
    "said", [bytearray([0, 0, 1, 1]), np.array([0, 0, 1, 1]), [False, False, True, True]], ids=repr
)
def test_a_policy_may_answer_in_bytes_whole_numbers_or_booleans(said):
    assert caches.simulate(REQUESTS, Says(said), 1).block == 0.5
