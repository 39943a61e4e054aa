"""The keys and values of prompts' beginnings, in blocks: what two prompts begin with alike is computed once."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from numbers import Integral
from threading import RLock

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from .tokens import token_ids

ROOT = b"fmlab prefix"
ROUNDING = 0.05  # relative: far above what a half-precision model differs by between two runs, far below another model


def block_hashes(ids: Iterable | Tensor, block: int) -> list[bytes]:
    """A hash for every whole block of `ids`, of its tokens and the hash before it: so of all tokens up to its end."""
    return [key for key, _ in _chain(ids, block)]


def _chain(ids: Iterable | Tensor, block: int) -> Iterator[tuple[bytes, bytes]]:
    """The hash of every whole block and the bytes of its ids."""
    ids, key = token_ids(ids), ROOT
    for row in ids[: len(ids) // block * block].astype("<i8").reshape(-1, block):
        key = _hash(key + row.tobytes())
        yield key, row.tobytes()


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


class Prefix(DynamicCache):
    """A cache that holds the first `tokens` tokens of a prompt, to be passed on as `past_key_values` with the others.

    Its tensors are its own: generation may grow, crop or overwrite them. `copied_nbytes` is what the copy cost.
    """

    def __init__(self, tokens: int, layers: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.tokens = tokens
        self.copied_nbytes = sum(keys.nbytes + values.nbytes for keys, values in layers)
        for keys, values in layers:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)  # sets dtype and device; its `update` would copy once more
            layer.keys, layer.values = keys, values
            self.layers.append(layer)


@dataclass(frozen=True, eq=False)
class _Block:
    ids: bytes
    parent: "_Block | None"
    layers: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)  # keys, values, each (1, kv_heads, block, d)

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


class PrefixCache:
    """Blocks of keys and values by the tokens from the prompt's beginning to their end; the least recently used go first.

    A block's key is a hash of its `block` token ids and its parent's key, as in vLLM's automatic prefix caching; the ids
    and the parent are compared too, so no collision serves wrong tensors. A block with cached children is never evicted
    before them, as in RadixAttention (arXiv:2312.07104, section 3). `capacity` is in blocks, None has no bound. A cache
    is for one model: blocks of another shape, dtype or device are refused, and another model of the same shape as soon
    as it brings a prefix that is stored.

    Lookups and insertions copy, so a cache that was handed out is safe from eviction, and the store from generation. A
    lookup copies all bytes it returns: on a model so small that computing them is faster, the cache does not pay.
    """

    def __init__(self, block: int = 16, capacity: int | None = 1024) -> None:
        for name, value in (("block", block), ("capacity", capacity)):
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if (name, value) != ("capacity", None) and not (whole and value >= 1):
                raise ValueError(f"{name}={value!r:.40}; give an integer, 1 or more")
        self.block, self.capacity = int(block), None if capacity is None else int(capacity)
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()  # least recent first, so children before parents
        self._form: str | None = None
        self._lock = RLock()
        self.hit_tokens = self.asked_tokens = self.evicted_blocks = 0

    def lookup(self, ids: Iterable | Tensor) -> Prefix:
        """The longest cached prefix of `ids` in whole blocks, as a cache of its own; its `tokens` are 0 where none is.

        One token at least is left over, for the model must read one to say what comes next: of n tokens at most n - 1
        are served. Counts n in `asked_tokens` and the tokens served in `hit_tokens`.
        """
        ids = token_ids(ids)
        with self._lock:
            found = self._find(list(_chain(ids[:-1], self.block)))
            self._touch(found)
            tokens = len(found) * self.block
            self.asked_tokens += len(ids)
            self.hit_tokens += tokens
        blocks = [each for _, each in found]  # they stay as they are, evicted or not
        return Prefix(tokens, [_joined(layer) for layer in zip(*(each.layers for each in blocks), strict=True)])

    def insert(self, ids: Iterable | Tensor, cache: Cache) -> int:
        """Store the whole blocks of `ids` that are not stored yet; how many they were.

        `cache` is a DynamicCache with the keys and values of `ids`, of one sequence; it may hold more after them. A
        prompt of more than `capacity` blocks is stored up to there. Raises ValueError for a cache that holds fewer
        tokens (after `generate` the last token is not read yet), for one that drops tokens, as sliding layers and
        finite caches do, and for one that contradicts what is stored.
        """
        ids = token_ids(ids)
        layers = _layers(cache, len(ids))
        chain = list(_chain(ids, self.block))[: self.capacity]
        if not chain:
            return 0
        with self._lock:
            form = _form(layers)
            if self._form not in (None, form):
                raise ValueError(
                    f"the cache to insert has {form}; this one holds {self._form}. Use one PrefixCache for each model"
                )
            found = self._find(chain)
            self._check(found, layers)
            self._touch(found)
            new = chain[len(found) :]
            parent = found[-1][1] if found else None
            if self.capacity is not None:  # those just touched are the newest, and with `new` they fit
                self._evict(len(self._blocks) + len(new) - self.capacity)
            added: dict[bytes, _Block] = {}
            for place, (key, own) in enumerate(new, start=len(found)):
                if key in self._blocks or key in added:  # a collision: the block that has the key keeps it
                    break
                part = slice(place * self.block, (place + 1) * self.block)
                parent = _Block(own, parent, tuple((_own(keys, part), _own(values, part)) for keys, values in layers))
                added[key] = parent
            self._blocks |= reversed(added.items())
            self._touch(found)
            self._form = form
            return len(added)

    @property
    def hit_ratio(self) -> float:
        """Tokens served over tokens asked for; 0.0 before the first. It stays below 1, as no whole prompt is served."""
        return self.hit_tokens / max(self.asked_tokens, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values stored."""
        with self._lock:
            return sum(each.nbytes for each in self._blocks.values())

    def clear(self) -> None:
        """Drop all blocks and set the counts to 0; then another model may be inserted."""
        with self._lock:
            self._blocks.clear()
            self._form = None
            self.hit_tokens = self.asked_tokens = self.evicted_blocks = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def __repr__(self) -> str:
        return (
            f"PrefixCache(block={self.block}, capacity={self.capacity}, {len(self)} blocks, {self.nbytes:,} bytes, "
            f"{self.hit_tokens} of {self.asked_tokens} tokens hit)"
        )

    def _find(self, chain: list[tuple[bytes, bytes]]) -> list[tuple[bytes, _Block]]:
        """The stored blocks of a chain, from its beginning."""
        found, parent = [], None
        for key, ids in chain:
            here = self._blocks.get(key)
            if here is None or here.ids != ids or here.parent is not parent:
                break
            found.append((key, here))
            parent = here
        return found

    def _touch(self, found: list[tuple[bytes, _Block]]) -> None:
        """Mark as used now, the last block first: so a parent is always newer than its children, and evicted later."""
        for key, _ in reversed(found):
            self._blocks.move_to_end(key)

    def _evict(self, count: int) -> None:
        for _ in range(count):
            self._blocks.popitem(last=False)
            self.evicted_blocks += 1

    def _check(self, found: list[tuple[bytes, _Block]], layers: list[tuple[Tensor, Tensor]]) -> None:
        """That a cache agrees with the last block it shares with the store. First-layer keys: they depend on the token
        and its place alone, so that in one model they differ by rounding only."""
        if not found:
            return
        stored, given = found[-1][1].layers[0][0].double(), layers[0][0].double()
        given = given[..., (len(found) - 1) * self.block : len(found) * self.block, :]
        apart, size = (given - stored).norm().item(), stored.norm().item()
        if not apart <= ROUNDING * size:
            raise ValueError(
                f"the first {len(found) * self.block} ids are stored with other keys ({apart:.2g} apart, themselves {size:.2g} long): the "
                "cache is another model's, or does not hold these ids. Use one PrefixCache for each model"
            )


def _layers(cache: Cache, tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, (1, kv_heads, n >= tokens, d)."""
    if not isinstance(cache, DynamicCache):
        raise ValueError(f"{type(cache).__name__} may not hold every token; fill a DynamicCache() and insert that")
    if tokens and not cache.layers:
        raise ValueError(f"the cache is empty; {tokens} ids need one that holds them")
    for number, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer:
            raise ValueError(
                f"layer {number} is a {type(layer).__name__}, which cannot be cut into blocks; fill a DynamicCache() made "
                "without the model's config, whose layers hold every token"
            )
        batch, held = layer.keys.shape[0] if layer.is_initialized else 1, layer.get_seq_length()
        if batch != 1:
            raise ValueError(f"layer {number} holds a batch of {batch}; insert caches of one sequence")
        if held < tokens:
            raise ValueError(
                f"layer {number} holds {held} tokens, fewer than the {tokens} ids; give the ids that were read, such as "
                "ids[:cache.get_seq_length()]"
            )
    return [(layer.keys, layer.values) for layer in cache.layers]


def _form(layers: list[tuple[Tensor, Tensor]]) -> str:
    """What blocks must have in common: layers, heads, widths, dtype and device; runs of equal layers are counted."""
    forms = []
    for keys, values in layers:
        dtype = str(keys.dtype).removeprefix("torch.")
        forms.append(f"{keys.shape[1]} KV heads of {keys.shape[-1]} and {values.shape[-1]}, {dtype} on {keys.device}")
    counted: list[list] = []
    for form in forms:
        if counted and counted[-1][1] == form:
            counted[-1][0] += 1
        else:
            counted.append([1, form])
    return " and ".join(f"{count} layers with {form}" for count, form in counted)


def _own(tensor: Tensor, part: slice) -> Tensor:
    return tensor.detach()[..., part, :].clone(memory_format=torch.contiguous_format)


def _joined(blocks: tuple[tuple[Tensor, Tensor], ...]) -> tuple[Tensor, Tensor]:
    """One layer's keys and values; `cat` copies, a single block too."""
    keys, values = zip(*blocks, strict=True)
    return torch.cat(keys, dim=-2), torch.cat(values, dim=-2)
