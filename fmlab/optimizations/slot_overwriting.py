"""A cache at its budget: the newcomer overwrites the slot of the entry evicted last, or the kept entries are gathered."""

import random
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..bag import Bag
from ..slots import Slots
from . import real
from .pair import Floor, Pair

STEPS = (
    64  # decode steps a call; the one copy that the slots make when they take the filled cache over is spread on them
)


class Held(NamedTuple):
    """What a cache holds in the end, each head in order of position, so that two ways of storing it can be compared."""

    positions: Int[Tensor, "heads n"]
    keys: Float[Tensor, "heads n d"]
    values: Float[Tensor, "heads n d"]


def gathering(keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor, evicted: Tensor) -> Held:
    """Every step lays the newcomer behind the entries, as a stock cache does, and then picks those that are kept."""
    heads, slots, d = keys.shape
    positions = torch.arange(slots).expand(heads, slots)
    first_row = torch.arange(heads)[:, None] * (slots + 1)
    for step in range(len(evicted)):
        keys = torch.cat([keys, new_keys[:, step : step + 1]], 1)
        values = torch.cat([values, new_values[:, step : step + 1]], 1)
        positions = torch.cat([positions, positions.new_full((heads, 1), slots + step)], 1)
        kept = (positions != evicted[step]).nonzero()[:, 1].view(heads, slots)
        rows = (
            kept + first_row
        ).flatten()  # whole rows by one index: a third of the time of `gather` element by element
        keys, values = (x.view(-1, d).index_select(0, rows).view(heads, slots, d) for x in (keys, values))
        positions = positions.gather(1, kept)
    return _in_order(positions, keys, values)


def overwriting(keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor, evicted: Tensor) -> Held:
    """The same through `Slots`, as every live run and replay stores its entries."""
    heads, slots, _ = keys.shape
    cache = Slots(Bag.of(1, [0], heads, 1), slots)
    if slots:
        cache.stage(slots, keys=keys, values=values)
        cache.settle({}, None)
    for step in range(len(evicted)):
        cache.stage(1, keys=new_keys[:, step : step + 1], values=new_values[:, step : step + 1])
        lost = (cache.staged_positions() == evicted[step]).int().argmax(-1, keepdim=True)
        cache.settle({}, lost)
    used = cache.places[:, : slots + 1]
    held = (used >= 0).nonzero()[:, 1].view(heads, slots)
    index = held[..., None].expand(heads, slots, keys.shape[-1])
    return _in_order(used.gather(1, held), *(cache.data[name].gather(1, index) for name in ("keys", "values")))


def inputs(size: int, seed: int) -> tuple[Tensor, ...]:
    """A full cache of `size` slots a head, what arrives in `STEPS` steps, and the position that each head loses at each.

    Numbers drawn in the shape of one layer of the model: moving them takes as long whatever they are. Any entry may be
    lost, the newcomer too.
    """
    config = real.lm().model.config
    heads, d = config.num_key_value_heads, config.head_dim
    numbers = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(heads, n, d, generator=numbers) for n in (size, size, STEPS, STEPS)]
    chance, held = random.Random(seed), [list(range(size)) for _ in range(heads)]
    evicted = torch.empty(STEPS, heads, 1, dtype=torch.int64)
    for step in range(STEPS):
        for head, own in enumerate(held):
            own.append(size + step)
            evicted[step, head] = own.pop(chance.randrange(size + 1))
    return *vectors, evicted


def floor(size: int) -> Floor:
    """One key and one value a head and step, however many slots there are."""
    config = real.lm().model.config
    vectors = 2 * config.num_key_value_heads * STEPS
    return Floor(vectors * config.head_dim * 4, "bytes", f"the keys and values of {STEPS} newcomers, written once")


def _in_order(positions: Tensor, keys: Tensor, values: Tensor) -> Held:
    order = positions.argsort(-1)
    index = order[..., None].expand(keys.shape)
    return Held(positions.gather(1, order), keys.gather(1, index), values.gather(1, index))


PAIR = Pair(
    name="slot overwriting",
    claim=None,
    source="this lab: every cache at its budget",
    baseline=gathering,
    optimised=overwriting,
    inputs=inputs,
    sizes=(64, 512, 4_096),
    unit="slots a head",
    floor=floor,
    used_in="fmlab.slots.Slots",
)
