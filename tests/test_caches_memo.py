import math
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import cachetools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmlab.caches import Memo

SECONDS = 10  # no step of these tests waits for longer


def memo(size: int = 100) -> Memo:
    return Memo(cachetools.LRUCache(size))


class Counting:
    """A computation that knows how often it ran."""

    def __init__(self, value):
        self.value, self.runs = value, 0

    def __call__(self):
        self.runs += 1
        return self.value


@given(st.lists(st.integers(0, 9)), st.integers(1, 8))
def test_hits_are_the_computations_that_were_skipped(keys, size):
    cache, recent, runs = memo(size), OrderedDict(), []
    hits = 0
    for key in keys:
        assert cache.get(key, lambda key=key: runs.append(key) or -key) == -key
        hits += key in recent
        recent[key] = recent.pop(key, None)
        if len(recent) > size:
            recent.popitem(last=False)
    assert (cache.hits, cache.misses) == (hits, len(runs)) == (hits, len(keys) - hits)
    assert cache.hit_ratio == (hits / len(keys) if keys else 0.0)
    assert len(cache) == len(recent) <= size


@given(st.lists(st.lists(st.integers(0, 9))), st.integers(1, 12))
def test_a_batch_computes_what_it_misses_once_and_in_one_call(batches, size):
    cache, hits, misses = memo(size), 0, 0
    for keys in batches:
        known = {key for key in range(10) if key in cache._store}
        calls = []
        values = cache.get_many(keys, lambda missing, calls=calls: calls.append(missing) or [-key for key in missing])
        assert values == [-key for key in keys]
        new = [key for key in dict.fromkeys(keys) if key not in known]
        assert calls == ([new] if new else [])
        hits, misses = hits + len(keys) - len(new), misses + len(new)
        assert (cache.hits, cache.misses) == (hits, misses)


@pytest.mark.parametrize(
    "store", [cachetools.LFUCache(2), cachetools.FIFOCache(2), cachetools.RRCache(2), cachetools.TTLCache(2, 60)]
)
def test_any_cachetools_cache_will_do(store):
    cache = Memo(store)
    assert [cache.get(key, lambda key=key: key) for key in (1, 1, 2, 3, 3)] == [1, 1, 2, 3, 3]
    assert (cache.hits, cache.misses, len(cache)) == (2, 3, 2)
    assert type(store).__name__ in repr(cache) and "2 hits, 3 misses" in repr(cache)


def test_what_has_expired_is_computed_again():
    now = [0.0]
    cache, compute = Memo(cachetools.TTLCache(2, ttl=5, timer=lambda: now[0])), Counting("x")
    cache.get(1, compute)
    now[0] = 6.0
    assert cache.get(1, compute) == "x"
    assert (compute.runs, cache.hits, cache.misses) == (2, 0, 2)


def test_none_is_a_value():
    cache, compute = memo(), Counting(None)
    assert cache.get("k", compute) is None and cache.get("k", compute) is None
    assert (compute.runs, cache.hits, cache.misses, len(cache)) == (1, 1, 1, 1)


def test_a_store_in_bytes_keeps_no_more_and_tells_of_values_larger_than_itself():
    cache = Memo(cachetools.LRUCache(10, getsizeof=len))
    assert cache.get("a", lambda: b"x" * 6) == b"x" * 6
    assert cache.get("b", lambda: b"x" * 11) == b"x" * 11
    assert cache.get("b", lambda: b"x" * 11) == b"x" * 11
    assert (cache.hits, cache.misses, cache.too_large, len(cache)) == (0, 3, 2, 1)
    assert "2 too large" in repr(cache)
    cache.get("c", lambda: b"x" * 5)
    assert (len(cache), cache._store.currsize) == (1, 5)
    assert cache.get("c", lambda: b"") == b"x" * 5 and cache.hits == 1


def test_an_error_is_raised_counted_and_not_kept():
    cache, good = memo(), Counting(3)
    for error in (KeyError("k"), ValueError("no")):  # a KeyError of the computation is no missing key
        with pytest.raises(type(error)) as raised:
            cache.get("k", lambda error=error: (_ for _ in ()).throw(error))
        assert raised.value is error
    assert (cache.hits, cache.misses, len(cache)) == (0, 2, 0)
    assert cache.get("k", good) == 3 and good.runs == 1
    with pytest.raises(ZeroDivisionError):
        cache.get_many(["k", "a", "b", "a"], lambda missing: 1 // 0)
    assert (cache.hits, cache.misses, len(cache)) == (1, 6, 1)
    with pytest.raises(ValueError, match="1 values for 2 keys"):
        cache.get_many(["a", "b"], lambda missing: [1])
    assert len(cache) == 1


def test_a_key_that_cannot_be_hashed_leaves_nothing_behind():
    cache = memo()
    with pytest.raises(TypeError):
        cache.get_many([1, []], lambda missing: missing)
    assert cache.get(1, lambda: 5) == 5
    assert (cache.hits, cache.misses) == (0, 1)


def test_clear_drops_values_and_counts_and_what_is_under_way():
    cache = memo()
    cache.get(1, lambda: 1)
    assert cache.get(2, lambda: cache.clear() or 2) == 2  # under way while the memo is cleared
    assert (cache.hits, cache.misses, len(cache)) == (0, 0, 0)
    assert cache.get(2, lambda: 3) == 3


def test_a_computation_may_ask_for_other_keys():
    cache = memo()

    def fibonacci(n):
        return cache.get(n, lambda: n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2))

    assert fibonacci(30) == 832_040
    assert (cache.hits, cache.misses) == (28, 31)


def test_a_computation_that_asks_for_itself_is_refused():
    cache = memo()
    with pytest.raises(RecursionError, match="'k' waits for itself"):
        cache.get("k", lambda: cache.get("k", lambda: 1))
    assert cache.get("k", lambda: 2) == 2


def test_two_threads_that_wait_for_each_other_are_told():
    cache, both = memo(), threading.Barrier(2, timeout=SECONDS)

    def compute(other):
        both.wait()  # both computations are under way
        return cache.get(other, lambda: other)

    with ThreadPoolExecutor(2) as pool:
        asks = [pool.submit(cache.get, key, lambda other=other: compute(other)) for key, other in ("ab", "ba")]
        errors = [ask.exception(SECONDS) for ask in asks]
    assert all(isinstance(error, RecursionError) for error in errors)
    assert (cache.hits, len(cache), cache._flights, cache._waits) == (0, 0, {}, {})


def waiting(cache: Memo, threads: int) -> None:
    """Return once so many threads wait."""
    pause = threading.Event()
    for _ in range(SECONDS * 1000):
        if len(cache._waits) == threads:
            return
        pause.wait(0.001)
    pytest.fail(f"{len(cache._waits)} threads wait, not {threads}")


@pytest.mark.parametrize("batch", [False, True])
def test_threads_that_ask_for_the_same_key_compute_it_once_and_others_do_not_wait(batch):
    cache, go, runs = memo(), threading.Event(), []

    def slow():
        runs.append(1)
        assert go.wait(SECONDS)
        return "value"

    def ask():
        return cache.get_many(["k"], lambda missing: [slow()])[0] if batch else cache.get("k", slow)

    with ThreadPoolExecutor(4) as pool:
        asks = [pool.submit(ask) for _ in range(4)]
        waiting(cache, 3)
        assert cache.get("other", lambda: 1) == 1  # though "k" is under way
        assert (cache.hits, cache.misses) == (0, 2)
        go.set()
        assert [each.result(SECONDS) for each in asks] == ["value"] * 4
    assert (len(runs), cache.hits, cache.misses) == (1, 3, 2)


def test_an_error_reaches_all_who_wait():
    cache, go = memo(), threading.Event()

    def fails():
        assert go.wait(SECONDS)
        raise OSError("disk")

    with ThreadPoolExecutor(3) as pool:
        asks = [pool.submit(cache.get, "k", fails) for _ in range(3)]
        waiting(cache, 2)
        go.set()
        assert all(isinstance(each.exception(SECONDS), OSError) for each in asks)
    assert (cache.hits, cache.misses, len(cache)) == (0, 3, 0)


def test_who_waits_for_a_computation_that_was_stopped_computes_it():
    cache, go = memo(), threading.Event()

    def stopped():
        assert go.wait(SECONDS)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "k", stopped)
        while "k" not in cache._flights and not first.done():
            pass
        second = pool.submit(cache.get, "k", lambda: "mine")
        waiting(cache, 1)
        go.set()
        assert isinstance(first.exception(SECONDS), KeyboardInterrupt)
        assert second.result(SECONDS) == "mine"
    assert (cache.hits, cache.misses, len(cache)) == (0, 2, 1)


def test_overlapping_batches_in_two_threads_compute_each_key_once():
    cache, both, runs = memo(), threading.Barrier(2, timeout=SECONDS), []

    def compute(missing):
        both.wait()
        runs.extend(missing)
        return [-key for key in missing]

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_many, [1, 2, 3], compute)
        while 3 not in cache._flights and not first.done():
            pass
        second = pool.submit(cache.get_many, [3, 4, 3, 1], compute)
        assert (first.result(SECONDS), second.result(SECONDS)) == ([-1, -2, -3], [-3, -4, -3, -1])
    assert sorted(runs) == [1, 2, 3, 4]
    assert (cache.hits, cache.misses) == (3, 4)


def test_many_threads_count_every_ask():
    cache, lock, runs = memo(5), threading.Lock(), []

    def compute(key):
        with lock:
            runs.append(key)
        return -key

    def ask(seed):
        return all(cache.get(key := seed * 7 * n % 11, lambda key=key: compute(key)) == -key for n in range(300))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(1, 9)))
    assert cache.hits + cache.misses == 8 * 300
    assert cache.misses == len(runs)
    assert len(cache) <= 5 and cache._flights == {} == cache._waits


@pytest.mark.parametrize("store", [100, {}, None])
def test_what_is_no_store_is_refused(store):
    with pytest.raises(TypeError):  # the type checker's or ours
        Memo(store)


def test_a_store_that_keeps_nothing_or_computes_by_itself_is_refused():
    class Own(cachetools.LRUCache):
        def __missing__(self, key):
            return 0

    with pytest.raises(ValueError, match="maxsize=0"):
        Memo(cachetools.LRUCache(0))
    with pytest.raises(ValueError, match="Own computes what it misses"):
        Memo(Own(3))
    assert math.isinf(Memo(cachetools.LRUCache(math.inf))._store.maxsize)
