"""Run a policy inside a Hugging Face model: a cache that evicts in prefill chunks and at every decode step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache as once
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from .attach import attached, tag, unreachable
from .attention import attend, attend_apart
from .bag import Bag
from .cast import Cast
from .core import Allocation, Policy, check_allocation, check_needs
from .needs import LIVE, Equipment
from .quantise import Quantised
from .ragged import Ragged
from .renumber import POSITIONS, Renumbering, check_positions
from .slots import Meter, Slots
from .together import Together, Turn
from .view import normal_tensors

First = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys and values of the heads axis -> what `attend` gives


class FiniteLayer(CacheLayerMixin):
    """What one layer holds. It stores what survives, but reports what was seen, so that positions stay true."""

    def __init__(self, cache: "FiniteCache", number: int):
        super().__init__()
        self.cache, self.number = cache, number
        self.slots: Slots | Ragged | None = None
        self.batch = 0
        self.attended = True  # the attention of the last call came back to us
        self.repeated: Tensor | None = None  # what a second pass told of the text that is being read

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.batch, kv_heads = key_states.shape[:2]
        with normal_tensors():
            bag = Bag.of(self.batch, [self.number], kv_heads, 1, key_states.device)
            budget, meter, layers, code = self.cache.budget, self.cache.meter, len(self.cache.layers), self.cache.code
            if not isinstance(budget, Allocation):
                self.slots = Slots(bag, budget, meter, code=code)
            elif budget.even:
                self.slots = Slots(bag, budget.at(self.number, layers), meter, code=code)
            else:
                self.slots = Ragged(bag, budget, layers, meter, code=code)
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, kv_heads, new, d = key_states.shape
        self.cache.check_order(self)
        self.attended = False
        if batch != self.batch:
            raise ValueError(f"a batch of {batch} after one of {self.batch}; start a new cache for other sequences")
        rows, keys = batch * kv_heads, key_states.detach()
        if self.cache.renumbering is not None:
            keys = self.cache.renumbering.taken_off(keys, self.slots.seen)
        self.slots.stage(
            new,
            keys=keys.reshape(rows, new, d),
            values=value_states.detach().reshape(rows, new, value_states.shape[-1]),
        )
        if isinstance(self.slots, Ragged):  # no tensor has them all; the attention asks us for what it needs
            return tag(key_states.view_as(key_states), self), value_states
        keys, values = self.slots.staged("keys"), self.slots.staged("values")
        shape = (batch, kv_heads, -1)
        return tag(keys.view(*shape, d), self), values.view(*shape, values.shape[-1])

    def attend(
        self, query: Tensor, scaling: float, window: int | None, softcap: float | None, first: First | None = None
    ) -> Tensor:
        """As `AttendingLayer`; `first` computes the attention of a call that finds nothing stored."""
        first = first if self.slots.seen == 0 else None
        if self.slots.seen == 0:
            if window is not None and self.cache.renumbering is not None:
                raise ValueError(
                    f"layer {self.number} has a sliding window of its own ({window}); use original positions"
                )
            self.slots.learn(query.shape[1] * self.batch // len(self.slots.bag), window)
        output = (self._attend_apart if isinstance(self.slots, Ragged) else self._attend)(
            query, scaling, softcap, first
        )
        if self.number == len(self.cache.layers) - 1:
            self.cache.together.end_call()
        self.attended = True
        return output

    def _attend(self, query: Tensor, scaling: float, softcap: float | None, first: First | None) -> Tensor:
        slots, together, (batch, query_heads, new, d) = self.slots, self.cache.together, query.shape
        query = self._placed(query, slots.held, slots.seen)
        keys = once(lambda: self._ranked(slots.staged("keys"), slots.staged_positions()))
        view = slots.view(
            scaling=scaling,
            softcap=softcap,
            query_aware=self.cache.query_aware,
            keys=keys,
            values=lambda: slots.staged("values"),
            queries=lambda: query.detach().reshape(batch * query_heads, new, d),
            new_keys=lambda: self._placed(slots.staged_new("keys"), slots.held),
            new_values=lambda: slots.staged_new("values"),
            prepared=self._prepared(),
        )
        if new == 1 and together.worth:
            if "attention" in together.asked:
                view.weights(1)  # it will ask again: once computed they serve both
            output = attend(view, query, keys(), slots.staged("values"))
            together.add(Turn(self.number, slots, view))
        else:
            stats, evicted = slots.choose(self.cache.policy, view)
            stored = keys(), slots.staged("values")
            output = attend(view, query, *stored) if first is None else first(query, *stored)
            slots.settle(stats, evicted)
            together.note(view)
        return output

    def _attend_apart(self, query: Tensor, scaling: float, softcap: float | None, first: First | None) -> Tensor:
        slots, (batch, _, new, d) = self.slots, query.shape
        every = query.reshape(len(slots.bag), -1, new, d)  # (heads, groups, new, d)
        prepared = {name: once(make) for name, make in self._prepared().items()}

        def asked(rows: list[int], held: int) -> Tensor:
            return self._placed(every[rows], held, slots.seen)

        def show(rows: list[int], positions: Tensor) -> dict:
            held = positions.shape[1] - new
            return {
                "keys": lambda: self._ranked(slots.staged("keys", rows), positions),
                "values": lambda: slots.staged("values", rows),
                "queries": lambda: asked(rows, held).detach().flatten(0, 1),
                "new_keys": lambda: self._placed(slots.staged_new("keys")[rows], held),
                "new_values": lambda: slots.staged_new("values")[rows],
                "prepared": {name: _of_rows(make, rows) for name, make in prepared.items()},
            }

        parts = slots.parts(show, scaling=scaling, softcap=softcap, query_aware=self.cache.query_aware)
        chosen = slots.choose(self.cache.policy, parts)
        if first is not None:  # no head holds anything yet, so all are one part
            output = first(asked(parts[0][0], 0), parts[0][1].keys, parts[0][1].values)
        else:
            parted = [(rows, view, asked(rows, view.positions.shape[1] - new)) for rows, view, _ in parts]
            output = attend_apart(parted, batch)
        slots.settle(chosen)
        return output

    def _placed(self, x: Tensor, held: int, at: int | None = None) -> Tensor:
        """The newcomers of this call where they stand: after all that are held, if positions are counted in the cache.

        `at` is where the model put them; None for what is kept without a place.
        """
        renumbering = self.cache.renumbering
        if renumbering is None:
            return x
        return renumbering.from_on(x if at is None else renumbering.taken_off(x, at), held)

    def _ranked(self, keys: Tensor, positions: Tensor) -> Tensor:
        renumbering = self.cache.renumbering
        return keys if renumbering is None else renumbering.ranked(keys, positions)

    def _prepared(self) -> Mapping[str, Callable]:
        needs = self.cache.policy.needs
        if not needs:
            return {}
        made = self.cache.equipment.prepared(needs, self.number, lambda: self.slots.staged_new("values"), self.batch)
        return made if self.repeated is None else {**made, "second_pass": lambda: self.repeated}

    def take_over(self, slots: Slots, batch: int, dtype: torch.dtype) -> None:
        """Hold what has been chosen elsewhere, of keys of this type."""
        self.slots, self.batch, self.dtype = slots, batch, dtype
        self.device, self.is_initialized = slots.bag.layer.device, True

    def get_seq_length(self) -> int:
        return self.slots.seen if self.slots else 0

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        held, seen = (self.slots.held, self.slots.seen) if self.slots else (0, 0)
        return held + new, seen - held

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def reorder_cache(self, beam_idx: Int[Tensor, " beams"]) -> None:
        rows = torch.arange(len(self.slots.bag), device=self.device).view(self.batch, -1)
        self.slots.take(rows[beam_idx.to(self.device)].flatten())

    def batch_select_indices(self, indices: Int[Tensor, " kept"]) -> None:
        number = self.slots.bag.sequence.view(self.batch, -1)[:, 0]
        self.slots.narrow(number[indices.to(number.device)])
        self.batch = len(indices)

    def reset(self) -> None:
        raise NotImplementedError("a finite cache remembers its run; start a new one")


def _of_rows(make: Callable, rows: list[int]) -> Callable:
    """What was prepared for all rows of the heads axis, for some of them; a rotary embedding is the model's."""
    return lambda: made[rows] if isinstance(made := make(), Tensor) else made


class FiniteCache(Cache):
    """A transformers cache that holds at most `budget` entries a KV head between calls.

    Give it to the model as `past_key_values`. One forward call is one chunk: its queries see everything stored before
    and, causally, the chunk; then one eviction.
    """

    def __init__(
        self,
        policy: Policy,
        budget: int | Allocation,
        layers: int,
        kv_heads: int,
        query_aware: bool = False,
        equipment: Equipment | None = None,
        renumbering: Renumbering | None = None,
        code: Quantised | None = None,
    ):
        self.code = code
        self.policy, self.budget, self.query_aware, self.equipment = policy, budget, query_aware, equipment
        self.renumbering = renumbering
        self.meter, self.together = Meter(), Together(policy)
        self._kv_heads = kv_heads
        super().__init__(layers=[FiniteLayer(self, number) for number in range(layers)])

    def __repr__(self) -> str:
        positions = POSITIONS[self.renumbering is not None]
        bits = "" if self.code is None else f"bits={self.code.bits}, "
        return (
            f"FiniteCache({self.policy!r}, budget={self.budget}, positions={positions!r}, {bits}seen={self.seen}, "
            f"nbytes={self.nbytes})"
        )

    @property
    def seen(self) -> int:
        """Tokens that every layer has seen."""
        return min(layer.get_seq_length() for layer in self.layers)

    @property
    def expiry(self) -> Int[Tensor, "*batch layers kv_heads seen"]:
        """(layers, kv_heads, seen), with a leading batch axis for batch > 1: the first query that does not see an entry.

        Evicted after query t: t + 1; still stored: seen + 1. After an interrupt it tells of the queries that every
        layer has finished.
        """
        seen = self.seen
        if seen == 0:
            return torch.empty(len(self.layers), self._kv_heads, 0, dtype=torch.int64)
        batch = self.layers[0].batch
        rows = torch.stack([layer.slots.expiry(seen).view(batch, -1, seen).cpu() for layer in self.layers], 1)
        return rows.squeeze(0) if batch == 1 else rows

    def positions(self, layer: int) -> Int[Tensor, "*batch kv_heads slots"]:
        """(kv_heads, slots), with a leading batch axis for batch > 1: what each slot holds, -1 an empty slot."""
        chosen = self.layers[layer]
        if chosen.slots is None:
            return torch.empty(self._kv_heads, 0, dtype=torch.int64)
        places = chosen.slots.places
        if chosen.slots.window is not None:  # what slid out of the model's own window is no longer anybody's
            places = places.masked_fill(places <= chosen.slots.seen - chosen.slots.window[:, None], -1)
        return places if chosen.batch == 1 else places.view(chosen.batch, -1, places.shape[1])

    @property
    def nbytes(self) -> int:
        """Allocated bytes of keys and values."""
        return sum(layer.slots.nbytes for layer in self.layers if layer.slots)

    @property
    def nominal_nbytes(self) -> int:
        """Bytes of the keys and values of the entries held: what the budget promises. `nbytes` is what it really takes."""
        return sum(layer.slots.nominal_nbytes for layer in self.layers if layer.slots)

    @property
    def overhead_nbytes(self) -> int:
        """Allocated bytes of positions, the policy's columns and the record of expiries."""
        return sum(layer.slots.overhead_nbytes for layer in self.layers if layer.slots)

    @property
    def peak_nbytes(self) -> int:
        """The most that `nbytes` and `overhead_nbytes` reached together, the chunk of a call in flight included."""
        return self.meter.peak

    def copy(self) -> "FiniteCache":
        """An independent cache in the same state."""
        with normal_tensors():
            return deepcopy(self)

    def batch_select_indices(self, indices: Int[Tensor, " kept"]) -> None:
        """Give up all sequences of the batch but these."""
        super().batch_select_indices(indices)
        self.together.forget_kin()

    def alone(self, sequence: int) -> "FiniteCache":
        """An independent cache of one sequence of the batch, under its own policy."""
        if self.layers[0].batch == 1:
            return self.copy()
        policy, own = self.policy, dict
        if isinstance(policy, Cast):
            policy, own = policy.policies[sequence], partial(policy.own, sequence)
        cache = FiniteCache(
            policy,
            self.budget,
            len(self.layers),
            self._kv_heads,
            self.query_aware,
            self.equipment,
            self.renumbering,
            self.code,
        )
        with normal_tensors():
            for mine, theirs in zip(cache.layers, self.layers, strict=True):
                mine.take_over(theirs.slots.alone(sequence, cache.meter, own), 1, theirs.dtype)
        return cache

    def crop(self, *args) -> None:
        raise NotImplementedError("what a finite cache evicted does not come back; take a copy() before the tokens")

    def check_order(self, layer: FiniteLayer) -> None:
        """Raise where the layers no longer agree on what they have seen, or where no attention call came back to us."""
        number = layer.number
        if number and not self.layers[number - 1].attended:
            raise ValueError(
                f"the attention of layer {number - 1} never came back to the cache: this model's attention cannot be "
                "reached; use a model class that calls transformers' AttentionInterface, inside `with fm.finite(...)`"
            )
        if number == 0 and any(
            other.slots.interrupted or other.slots.seen != layer.slots.seen for other in self.layers if other.slots
        ):
            raise RuntimeError(
                f"this cache was interrupted in the middle of a call after {self.seen} tokens; it can be read, not continued: "
                "start a new one"
            )


@contextmanager
def finite(
    model: PreTrainedModel,
    policy: Policy,
    budget: int | Allocation,
    query_aware: bool = False,
    positions: str = "original",
    bits: int | None = None,
) -> Iterator[FiniteCache]:
    """Within it the model forgets by `policy`: pass the cache it yields as `past_key_values` to the model or `generate`.

    `budget` is the number of entries that each KV head may hold between calls, or an Allocation, which shares an average
    number out over layers and heads. `query_aware` says that the question is among the tokens seen before the eviction,
    and is shown to the policy. The cache can be read after the `with`.
    With `positions="renumbered"` keys and queries stand at their rank among what their head holds, as in StreamingLLM's
    own code, instead of where the text has them: what a policy sees of them too; `view.positions` and the expiry still
    tell of the text. It costs a rotation of every key at every call.
    `bits` (8 or 4) stores keys and values quantised (`fmlab.quantise`); a call still attends to its own tokens as they
    came.
    Raises RuntimeError inside another `finite` of the same model, ValueError for a model whose attention cannot be
    reached, a batch of unequal lengths or a policy that breaks its contract, BudgetError for a budget below what the
    policy pins.
    """
    check_positions(positions)
    renumbered = positions == "renumbered"
    check_needs(
        policy,
        LIVE - {"pre_rope"} if renumbered else LIVE,
        f"a live model{' with renumbered positions' if renumbered else ''}",
    )
    code = None if bits is None else Quantised(bits)
    with attached(model):
        equipment = Equipment(model) if policy.needs else None
        if equipment is not None:
            equipment.check(policy, f"a live {type(model).__name__}")
        config = model.config.get_text_config(decoder=True)
        check_allocation(budget, config.num_hidden_layers)
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        renumbering = Renumbering(model) if renumbered else None
        watch = model.register_forward_hook(_check_reached, with_kwargs=True)
        try:
            yield FiniteCache(
                policy, budget, config.num_hidden_layers, kv_heads, query_aware, equipment, renumbering, code
            )
        finally:
            watch.remove()


def _check_reached(model: PreTrainedModel, args: tuple, kwargs: dict, output: object) -> None:
    """After a call of the model: raise ValueError where some layer's attention went past the cache it was given."""
    cache = kwargs.get("past_key_values")
    if isinstance(cache, FiniteCache) and cache.seen == 0:
        raise unreachable(model)
