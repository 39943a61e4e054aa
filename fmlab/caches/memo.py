"""A memo over any cachetools cache: each value is computed once, also where several threads ask, and hits are counted."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from threading import Event, Lock, get_ident
from typing import Any

import cachetools


class Memo:
    """Values by key in a cachetools cache, which bounds them in entries or, by its `getsizeof`, in bytes.

    A hit is an ask whose computation was skipped; every other ask is a miss, also where the computation raises. A
    thread that asks for what another one is computing waits for it, and is a hit; other keys do not wait. A computation
    may ask the memo for other keys. None is a value like any other. A value larger than the whole store is handed out
    but not kept: a miss each time, counted in `too_large`. The store belongs to one memo from then on.

    Raises TypeError for what is no cachetools cache, ValueError for a store of size 0 or one that computes by itself.
    """

    def __init__(self, store: cachetools.Cache) -> None:
        if not isinstance(store, cachetools.Cache):
            raise TypeError(f"{store!r:.40} is no store; give a cachetools cache, such as cachetools.LRUCache(10_000)")
        if store.maxsize <= 0:
            raise ValueError(f"a store of maxsize={store.maxsize} keeps nothing; give it room")
        if type(store).__missing__ is not cachetools.Cache.__missing__:
            raise ValueError(f"{type(store).__name__} computes what it misses; the memo could not count that")
        self._store = store
        self._lock = Lock()  # held for looks into the store, never while a value is computed
        self._flights: dict[Hashable, _Flight] = {}
        self._waits: dict[int, _Flight] = {}  # what each waiting thread waits for
        self.hits = self.misses = self.too_large = 0

    @property
    def hit_ratio(self) -> float:
        """Hits over all asks; 0.0 before the first."""
        return self.hits / max(self.hits + self.misses, 1)

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The value of `key`: the stored one, or what `compute()` gives, which is then stored.

        What `compute` raises reaches its caller and all who wait for it; nothing is stored, and each counts a miss.
        Raises RecursionError for a computation that waits for itself.
        """
        with self._lock:
            try:
                value = self._store[key]
            except KeyError:
                pass
            else:
                self.hits += 1
                return value
        return self.get_many([key], lambda _: [compute()])[0]

    def get_many(self, keys: Iterable[Hashable], compute_many: Callable[[list], Sequence]) -> list:
        """The values of `keys`, in order; those that are missing are computed by one call, each once.

        `compute_many` gets the missing keys in the order of their first place and gives a value for each. A key that
        stands in `keys` again is a hit. What is being computed elsewhere is waited for, after the own computation.
        Raises as `get` does, and ValueError where `compute_many` gives more or fewer values than keys.
        """
        keys = list(keys)
        asked, values = Counter(keys), {}
        while left := [
            key for key in asked if key not in values
        ]:  # a second time only where another thread was stopped
            mine, own, others = [], _Flight(), {}
            try:
                with self._lock:
                    for key in left:
                        try:
                            values[key] = self._store[key]
                            self.hits += asked[key]
                        except KeyError:
                            if key in self._flights:
                                others[key] = self._flights[key]
                            else:
                                self._flights[key] = own
                                mine.append(key)
                if mine:
                    self._compute(mine, own, compute_many, asked)
                    values |= own.values
            finally:
                self._land(mine, own)
            for key, flight in others.items():
                self._wait(key, flight)
                with self._lock:
                    if key in flight.values:
                        values[key] = flight.values[key]
                        self.hits += asked[key]
                    elif flight.error is not None:
                        self.misses += asked[key]
                        raise flight.error
        return [values[key] for key in keys]

    def clear(self) -> None:
        """Drop all values and set the counts to 0. What is being computed meanwhile is handed out, but not stored."""
        with self._lock:
            self._store.clear()
            self._flights = {}
            self.hits = self.misses = self.too_large = 0

    def _compute(self, mine: list, own: "_Flight", compute_many: Callable, asked: Counter) -> None:
        again = sum(asked[key] - 1 for key in mine)
        with self._lock:
            self.misses += len(mine)
        try:
            computed = compute_many(list(mine))
            if len(computed) != len(mine):
                raise ValueError(f"the computation gave {len(computed)} values for {len(mine)} keys; give one for each")
            values = dict(zip(mine, computed, strict=True))
            with self._lock:
                for key, value in values.items():
                    self._keep(key, value, own)
                self.hits += again
            own.values = values
        except Exception as error:  # handed to who waits too, and raised
            own.error = error
            with self._lock:
                self.misses += again
            raise

    def _keep(self, key: Hashable, value: Any, own: "_Flight") -> None:
        if self._store.getsizeof(value) > self._store.maxsize:
            self.too_large += 1
        elif self._flights.get(key) is own:  # else the memo was cleared meanwhile
            self._store[key] = value

    def _land(self, mine: list, own: "_Flight") -> None:
        """Let those who wait go on: with the values, with the error, or, where we were stopped, to compute them."""
        with self._lock:
            for key in mine:
                if self._flights.get(key) is own:
                    del self._flights[key]
        own.landed.set()

    def _wait(self, key: Hashable, flight: "_Flight") -> None:
        me = get_ident()
        with self._lock:
            ahead = flight
            while ahead is not None and not ahead.landed.is_set():
                if ahead.thread == me:
                    self.misses += 1
                    raise RecursionError(
                        f"the computation of {key!r:.60} waits for itself; let it ask for other keys only"
                    )
                ahead = self._waits.get(ahead.thread)
            self._waits[me] = flight
        try:
            flight.landed.wait()
        finally:
            with self._lock:
                del self._waits[me]

    def __len__(self) -> int:
        return len(self._store)

    def __repr__(self) -> str:
        store, large = self._store, f", {self.too_large} too large" if self.too_large else ""
        return (
            f"Memo({type(store).__name__}, {len(store)} values, {store.currsize:,} of {store.maxsize:,}, "
            f"{self.hits} hits, {self.misses} misses{large})"
        )


class _Flight:
    """The values that a thread is computing in one call."""

    def __init__(self) -> None:
        self.thread = get_ident()
        self.landed = Event()
        self.values: dict[Hashable, Any] = {}
        self.error: Exception | None = None


class Remembering:
    """What the caches over a memo show of it."""

    memo: Memo

    @property
    def hits(self) -> int:
        return self.memo.hits

    @property
    def misses(self) -> int:
        return self.memo.misses

    @property
    def hit_ratio(self) -> float:
        """Hits over all asks; 0.0 before the first."""
        return self.memo.hit_ratio

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.memo!r})"
