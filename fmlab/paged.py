"""A KV cache in pages with the bounds of their keys, so that a decode step by Quest reads the pages it chooses and no others."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .sparsity.dispatch import Plan
from .sparsity.dynamic import signed
from .sparsity.pages import over_common_pages, over_pages
from .view import normal_tensors

PAGES = "fmlab_pages"  # the layer hangs itself on the key tensor it returns, as in `attach`


class PagedLayer(CacheLayerMixin):
    """Keys and values of one layer in storage that grows by doubling, and the greatest and least key of every page.

    `keys` and `values` (batch, KV heads, seen, d) are views of what is stored; under another attention than that of
    `sparse` the layer is a cache like any other.
    """

    is_croppable = True
    is_sliding = False

    def __init__(self, cache: "PagedCache"):
        super().__init__()
        self.cache = cache
        self.seen = 0
        self.read_nbytes = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, kv_heads, _, d = key_states.shape
        with normal_tensors():
            self._keys = key_states.new_empty(batch, kv_heads, 0, d)
            self._values = value_states.new_empty(batch, kv_heads, 0, value_states.shape[-1])
            self._bounds = key_states.new_empty(batch, kv_heads, 2 * d, 0)  # of a page: the greatest, then the least
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cache.check_order(self)
        if key_states.shape[:2] != self._keys.shape[:2]:
            raise ValueError(
                f"keys of {tuple(key_states.shape[:2])} (batch, KV heads) after {tuple(self._keys.shape[:2])}; start a new "
                "cache for other sequences"
            )
        begin, new = self.seen, key_states.shape[2]
        self.seen = begin + new
        self._make_room()
        with torch.no_grad():
            self._keys[:, :, begin : self.seen] = key_states
            self._values[:, :, begin : self.seen] = value_states
            if new == 1 and begin % self.cache.block:
                self._widen(begin // self.cache.block, key_states)
            else:
                self._bound(begin // self.cache.block)
        self._show()
        first = begin == 0  # the very tensors: they may have a gradient, and are in one piece
        keys, values = (key_states.view_as(key_states), value_states) if first else (self.keys, self.values)
        setattr(keys, PAGES, self)
        self.read_nbytes = 0
        return keys, values

    def attend(
        self, query: Float[Tensor, "batch heads 1 d"], scaling: float, top: int, together: bool = False
    ) -> Float[Tensor, "batch heads 1 d"]:
        """Attention of one query over the `top` pages of the greatest bound on q·k, the last one always among them.

        With `together` the query heads of a KV head choose as one, and read each page once.
        """
        if together and torch.is_grad_enabled() and query.requires_grad:
            raise RuntimeError(
                "the derivative of a decode step over pages is not implemented; run it in torch.no_grad()"
            )
        batch, heads, _, d = query.shape
        kv_heads, block = self._keys.shape[1], self.cache.block
        count = -(-self.seen // block)
        if top >= count:
            pages = torch.arange(count, device=query.device).expand(batch, kv_heads if together else heads, -1)
        else:
            table = self._bounds.flatten(0, 1)[..., :count]  # (batch x KV heads, 2 d, pages)
            bounds = torch.bmm(signed(query.detach().reshape(batch * kv_heads, -1, d)), table)
            if together:  # the last page last
                best = bounds.amax(1)[:, :-1].topk(top - 1, -1, sorted=False).indices
                pages = torch.nn.functional.pad(best, (0, 1), value=count - 1).view(batch, kv_heads, top)
            else:
                bounds[..., -1] = torch.inf
                pages = bounds.topk(top, -1, sorted=False).indices.view(batch, heads, top)
        if together:
            output = over_common_pages(query, self._keys, self._values, pages, block, self.seen, scaling)
        else:
            output = over_pages(query, self.keys, self.values, pages, block, scaling)
        item = self._keys.element_size()
        self.read_nbytes = (pages.numel() * block * 2 * d + (top < count) * batch * kv_heads * count * 2 * d) * item
        return output

    @property
    def nbytes(self) -> int:
        """Allocated bytes of keys and values, room for more included."""
        return sum(x.nbytes for x in (self._keys, self._values)) if self.is_initialized else 0

    @property
    def overhead_nbytes(self) -> int:
        """Allocated bytes of the bounds."""
        return self._bounds.nbytes if self.is_initialized else 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        return self.seen + (query_length if isinstance(query_length, int) else query_length.shape[0]), 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def reset(self) -> None:
        self.keys = self.values = None
        self.seen, self.read_nbytes, self.is_initialized = 0, 0, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens: -3 the last three, as transformers counts them."""
        if tokens_to_remove > 0:  # transformers below 5.3 gives the length that is left
            tokens_to_remove = min(0, tokens_to_remove - self.seen)
        if self.is_initialized:
            self.seen = max(self.seen + tokens_to_remove, 0)
            self._bound(self.seen // self.cache.block)
            self._show()

    def reorder_cache(self, beam_idx: Int[Tensor, " beams"]) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " kept"]) -> None:
        self._take(lambda stored: stored[indices.to(stored.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._take(lambda stored: stored.repeat_interleave(repeats, 0))

    def _take(self, pick: Callable[[Tensor], Tensor]) -> None:
        if self.is_initialized:
            with normal_tensors():
                self._keys, self._values, self._bounds = map(pick, (self._keys, self._values, self._bounds))
            self._show()

    def _show(self) -> None:
        self.keys, self.values = self._keys[:, :, : self.seen], self._values[:, :, : self.seen]

    def _make_room(self) -> None:
        """At least twice as many pages as there were, where what is there does not suffice."""
        had, wanted = self._bounds.shape[3], -(-self.seen // self.cache.block)
        if wanted > had:
            pages = max(wanted, 2 * had)
            tokens = pages * self.cache.block
            with normal_tensors():
                self._keys, self._values = _longer(self._keys, tokens), _longer(self._values, tokens)
                self._bounds = _longer(self._bounds.mT, pages).mT.contiguous()

    def _widen(self, page: int, key: Float[Tensor, "batch kv_heads 1 d"]) -> None:
        """The bounds of a page that has got one more key."""
        high, low = self._bounds[..., page : page + 1].mT.chunk(2, -1)
        torch.maximum(high, key, out=high)
        torch.minimum(low, key, out=low)

    @torch.no_grad()
    def _bound(self, page: int) -> None:
        """The bounds of all pages from this one on."""
        block = self.cache.block
        full = self.seen // block
        for pages, keys in (
            (slice(page, full), self._keys[:, :, page * block : full * block].unflatten(2, (full - page, block))),
            (slice(full, full + 1), self._keys[:, :, None, full * block : self.seen]),
        ):
            if keys.shape[2] and keys.shape[3]:
                self._bounds[..., pages] = torch.cat([keys.amax(3), keys.amin(3)], -1).mT


class PagedCache(Cache):
    """A transformers cache whose layers keep pages of `block` tokens, each with the bounds that Quest chooses by.

    `plans` is what `kernel="auto"` found in the `sparse` that yielded the cache, over whichever cache it ran: for each
    (shape of queries, shape of keys) the Plan, whose `str` says which kernel and why. A single query needs none.
    """

    def __init__(self, layers: int, block: int = 64):
        self.block = block
        self.plans: dict[tuple, Plan] = {}
        super().__init__(layers=[PagedLayer(self) for _ in range(layers)])

    def __repr__(self) -> str:
        return f"PagedCache(block={self.block}, seen={self.seen}, nbytes={self.nbytes})"

    @property
    def seen(self) -> int:
        """Tokens that every layer has seen."""
        return min(layer.seen for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Allocated bytes of keys and values, room for more included."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def overhead_nbytes(self) -> int:
        """Allocated bytes of the bounds."""
        return sum(layer.overhead_nbytes for layer in self.layers)

    @property
    def read_nbytes(self) -> int:
        """Bytes of keys, values and bounds that the last call read by choosing pages, over all layers; 0 if it chose none.

        A page that several query heads of a KV head chose apart counts as often."""
        return sum(layer.read_nbytes for layer in self.layers)

    def check_order(self, layer: PagedLayer) -> None:
        """Raise RuntimeError where a call was interrupted between two layers."""
        if layer is self.layers[0] and any(other.seen != layer.seen for other in self.layers):
            raise RuntimeError(
                f"this cache was interrupted in the middle of a call after {self.seen} tokens; start a new one"
            )


def _longer(stored: Tensor, length: int) -> Tensor:
    """The same with room for `length`."""
    longer = stored.new_empty(*stored.shape[:2], length, stored.shape[3])
    longer[:, :, : stored.shape[2]] = stored
    return longer
