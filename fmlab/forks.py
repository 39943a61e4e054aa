"""One prefill, then a whole grid: every policy and budget evicts from the same cache, and all of them decode as a batch."""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .attach import attached, tag
from .bag import Bag
from .cast import Cast
from .core import Allocation, Policy, Stats, check_allocation, check_needs
from .language import LanguageModel
from .live import FiniteCache, FiniteLayer
from .needs import LIVE, Equipment
from .quantise import Quantised
from .repeat import repeated_attention
from .slots import Slots
from .view import View, normal_tensors
from .watch import watch

Cell = tuple[Policy, int | Allocation]
HOST = "a prefill"
FINISHED = 0.25  # the share of sequences that have ended from which on the batch is made smaller


def prefill(lm: LanguageModel, text: str | Sequence[int] | Tensor, query_aware: bool = False) -> "Prefill":
    """Let the model read a text or its ids in one call, and keep all that an eviction may be chosen from.

    `query_aware` says that the question is part of the text, as for `finite`. Raises ValueError for an empty text or a
    model whose attention cannot be reached.
    """
    return Prefill(lm, lm.ids(text), query_aware)


class Prefill:
    """A text that the model has read, with the queries, keys and values of every layer. `seconds` is what it took."""

    def __init__(self, lm: LanguageModel, ids: Int[Tensor, " tokens"], query_aware: bool):
        self.lm, self.ids, self.query_aware = lm, ids, query_aware
        self._layers: dict[int, View] = {}
        start = time.perf_counter()
        watch(lm.model, ids, self._keep)
        self.seconds = time.perf_counter() - start
        self._repeated: Tensor | None = None

    def __repr__(self) -> str:
        return f"Prefill({self.lm.name}, {len(self.ids)} tokens, {self.nbytes / 1e6:.1f} MB)"

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return len(self._layers)

    @property
    def kv_heads(self) -> int:
        """KV heads of a layer."""
        return len(self._layers[0].layer)

    @property
    def dtype(self) -> torch.dtype:
        """Of the keys."""
        return self._layers[0].keys.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values; the queries that are kept beside them are not counted."""
        return sum(view.keys.nbytes + view.values.nbytes for view in self._layers.values())

    @property
    def repeated(self) -> Float[Tensor, "layers kv_heads tokens"]:
        """What the model looks at while it repeats the text: a second pass, made when first asked for."""
        if self._repeated is None:
            self._repeated = repeated_attention(self.lm, self.ids)
        return self._repeated

    @torch.no_grad()
    def fork(self, cells: Sequence[Cell], bits: int | None = None) -> "Forks":
        """A memory for each (policy, budget), evicted from this prefill as `finite` evicts after its first call.

        `bits` (8 or 4) stores keys and values quantised, as in `finite`. Raises ValueError for no cells or a policy that
        needs the future, TypeError or BudgetError for a budget that is none or below what the policy pins.
        """
        if not cells:
            raise ValueError("no cells; give at least one (policy, budget)")
        for policy, budget in cells:
            check_allocation(budget, self.layers)
            check_needs(policy, LIVE | {"second_pass"}, HOST)
        equipment = Equipment(self.lm.model)
        for policy, _ in cells:
            equipment.check(policy, f"{HOST} of {type(self.lm.model).__name__}", frozenset({"second_pass"}))
        with normal_tensors():
            return Forks(self, list(cells), equipment, None if bits is None else Quantised(bits))

    def _keep(self, layer: int, view: View) -> None:
        for name in ("queries", "keys", "values"):
            getattr(view, name)  # made now, and kept by the view
        self._layers[layer] = view

    def seed(self, layer: int, cells: Sequence[Cell], equipment: Equipment, code: Quantised | None) -> list[Slots]:
        """What each cell keeps of one layer, where all its heads get equal shares."""
        whole, tokens = self._layers[layer], len(self.ids)
        bag = Bag.of(1, [layer], len(whole.layer), whole.groups, whole.layer.device)
        shown: View | None = None
        kept = []
        for policy, budget in cells:
            own = budget.at(layer, self.layers) if isinstance(budget, Allocation) else budget
            slots = Slots(bag, own, code=code)
            slots.learn(whole.groups, None if whole.window is None else int(whole.window[0]))
            slots.stage(tokens, keys=whole.keys, values=whole.values)
            if shown is None:
                shown = slots.view(
                    scaling=whole.scaling,
                    softcap=whole.softcap,
                    query_aware=self.query_aware,
                    keys=lambda: whole.keys,
                    values=lambda: whole.values,
                    queries=lambda: whole.queries,
                    new_keys=lambda: whole.keys,
                    new_values=lambda: whole.values,
                    prepared=self._prepared(layer, equipment),
                )
            slots.settle(*slots.choose(policy, shown.shown_to(policy.needs, slots.limit)))
            kept.append(slots)
        return kept

    def feed(self, layer: FiniteLayer) -> None:
        """Let a layer see the text as a live one does, where its heads get what an allocation gives them."""
        whole = self._layers[layer.number]
        if "second_pass" in layer.cache.policy.needs:
            layer.repeated = self.repeated[layer.number].to(whole.keys.device)
        layer.update(whole.keys[None], whole.values[None])
        window = None if whole.window is None else int(whole.window[0])
        layer.attend(whole.queries[None], whole.scaling, window, whole.softcap)
        layer.repeated = None

    def _prepared(self, layer: int, equipment: Equipment) -> dict[str, Callable]:
        whole = self._layers[layer]
        made = equipment.prepared(equipment.offers, layer, lambda: whole.values, 1)
        return {**made, "second_pass": lambda: self.repeated[layer].to(whole.keys.device)}


class _Branching(CacheLayerMixin):
    """One layer of a grid: hands each group of cells its own rows."""

    def __init__(self, number: int, caches: list[FiniteCache]):
        super().__init__()
        self.layers: list[FiniteLayer] = [cache.layers[number] for cache in caches]
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do: the layers have been taken over."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        sizes = [layer.batch for layer in self.layers]
        for layer, keys, values in zip(self.layers, key_states.split(sizes), value_states.split(sizes), strict=True):
            layer.update(keys, values)
        return tag(key_states, self), value_states

    def attend(self, query: Tensor, scaling: float, window: int | None, softcap: float | None) -> Tensor:
        queries = query.split([layer.batch for layer in self.layers])
        outputs = [layer.attend(q, scaling, window, softcap) for layer, q in zip(self.layers, queries, strict=True)]
        return torch.cat(outputs)

    def get_seq_length(self) -> int:
        return self.layers[0].get_seq_length()

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        return self.layers[0].get_mask_sizes(query_length)

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


class Forks:
    """The memories of a grid. What is read from here on is read by all cells at once, as one batch, in which cells of
    equal budgets share a cache; it is read by a copy, so the forks stay as they are.

    `[i]` is the `FiniteCache` of cell i, as `finite` with the text as one call leaves it; but its `peak_nbytes` counts from
    the fork on, for the keys and values of the prefill (`pre.nbytes`) are held once for all cells. `seconds` is what
    evicting took.
    """

    def __init__(self, pre: Prefill, cells: list[Cell], equipment: Equipment, code: Quantised | None):
        self.pre, self.cells = pre, cells
        start = time.perf_counter()
        groups: dict[object, list[int]] = {}
        for i, (_, budget) in enumerate(cells):
            groups.setdefault((i, budget) if _uneven(budget) else budget, []).append(i)
        self._members = list(groups.values())
        self._caches = []
        for members in self._members:
            policies, budget = [cells[i][0] for i in members], cells[members[0]][1]
            policy = policies[0] if len(members) == 1 else Cast(tuple(policies))
            shape = (pre.layers, pre.kv_heads)
            self._caches.append(FiniteCache(policy, budget, *shape, pre.query_aware, equipment, code=code))
        for number in range(pre.layers):
            self._seed(number, equipment, code)
        self.seconds = time.perf_counter() - start

    def _seed(self, number: int, equipment: Equipment, code: Quantised | None) -> None:
        even = [place for place, cache in enumerate(self._caches) if not _uneven(cache.budget)]
        cells = [i for place in even for i in self._members[place]]
        kept = dict(zip(cells, self.pre.seed(number, [self.cells[i] for i in cells], equipment, code), strict=True))
        for place, cache in enumerate(self._caches):
            layer, mine = cache.layers[number], self._members[place]
            if place not in even:
                self.pre.feed(layer)
            else:
                share = partial(cache.policy.joined, heads=len(kept[mine[0]].bag)) if len(mine) > 1 else _only
                layer.take_over(Slots.join([kept[i] for i in mine], cache.meter, share), len(mine), self.pre.dtype)

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        return f"Forks({len(self)} cells of {self.pre!r}, {self.nbytes / 1e6:.1f} MB)"

    @property
    def nbytes(self) -> int:
        """Allocated bytes of the keys and values of all cells."""
        return sum(cache.nbytes for cache in self._caches)

    def __getitem__(self, cell: int) -> FiniteCache:
        cell = range(len(self))[cell]
        place = next(place for place, members in enumerate(self._members) if cell in members)
        return self._caches[place].alone(self._members[place].index(cell))

    @torch.no_grad()
    def logits(
        self, text: str | Sequence[int] | Tensor, chunk: int | None = None
    ) -> Float[Tensor, "cells n vocabulary"]:
        """Let every cell read the same further text or ids, in one call or in calls of `chunk` tokens, each followed by an
        eviction: the logits after each token, (cells, n, vocabulary). Raises ValueError for an empty text."""
        return torch.cat([logits for logits, _ in self.read(text, chunk)], 1)

    def read(
        self, text: str | Sequence[int] | Tensor, chunk: int | None = None
    ) -> Iterator[tuple[Float[Tensor, "cells n vocabulary"], "Forks"]]:
        """As `logits`, one call after the other: the logits of each call, and the forks as they are after it (until the
        next call is made), so that a long text need not have all its logits at once."""
        ids = self.pre.lm.ids(text)
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk={chunk}; give at least 1 token")
        batch, after = _Batch(self), copy(self)
        after._caches = batch.caches
        for part in ids.split(chunk or len(ids)):
            with torch.no_grad():
                logits = batch.read(part.expand(len(self), -1))[batch.order.argsort()]
            yield logits, after

    @torch.no_grad()
    def generate(self, text: str | Sequence[int] | Tensor, max_new_tokens: int = 24) -> Int[Tensor, "cells new_tokens"]:
        """Let every cell read the same further text or ids in one call and go on from there, greedily.

        Returns the new tokens, (cells, `max_new_tokens`); a cell that has ended is filled up with the end token. Raises
        ValueError for an empty text.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}; give at least 1")
        lm, batch = self.pre.lm, _Batch(self)
        ends = torch.tensor(lm.ends, dtype=torch.int64, device=lm.model.device)
        said = torch.full((len(self), max_new_tokens), lm.ends[0] if lm.ends else 0)
        ids = lm.ids(text).expand(len(self), -1)
        for step in range(max_new_tokens):
            token = batch.read(ids, last=True)[:, -1].argmax(-1)
            said[batch.order, step] = token.cpu()
            going = ~torch.isin(token, ends)
            if not going.any():
                break
            if float(going.float().mean()) <= 1 - FINISHED:
                batch.narrow(going.nonzero()[:, 0])
                token = token[going]
            ids = token[:, None]
        return _ended(said, lm.ends)


class _Batch:
    """A copy of the memories of a grid, to read with. `order` are the cells as they stand in the batch."""

    def __init__(self, forks: Forks):
        self.model = forks.pre.lm.model
        self.caches = [cache.copy() for cache in forks._caches]
        self.order = torch.tensor([cell for members in forks._members for cell in members])

    def read(self, ids: Int[Tensor, "cells n"], last: bool = False) -> Float[Tensor, "cells read vocabulary"]:
        """Logits after each token, or after the last alone."""
        layers = [_Branching(number, self.caches) for number in range(len(self.caches[0].layers))]
        with attached(self.model):
            return self.model(input_ids=ids, past_key_values=Cache(layers=layers), logits_to_keep=int(last)).logits

    def narrow(self, going: Int[Tensor, " kept"]) -> None:
        """Give up all cells but those at these places."""
        self.order = self.order[going.cpu()]
        start, caches = 0, []
        for cache in self.caches:
            size = cache.layers[0].batch
            mine = going[(going >= start) & (going < start + size)] - start
            if len(mine):
                if len(mine) < size:
                    cache.batch_select_indices(mine)
                caches.append(cache)
            start += size
        self.caches = caches


def _uneven(budget: int | Allocation) -> bool:
    """Whether the heads of a layer may hold unequally many entries: then each cell is by itself."""
    return isinstance(budget, Allocation) and not budget.even


def _only(columns: list[Stats]) -> Stats:
    (own,) = columns
    return own


def _ended(said: Int[Tensor, "cells n"], ends: tuple[int, ...]) -> Int[Tensor, "cells n"]:
    """What was said up to the first end token, and from there on nothing but end tokens."""
    if not ends:
        return said
    over = torch.isin(said, torch.tensor(ends)).cumsum(-1) > 0
    first = over & ~(over.roll(1, -1) & (torch.arange(said.shape[1]) > 0))
    return said.masked_fill(over & ~first, ends[0])
