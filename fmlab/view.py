"""What a host shows a policy: the entries of a bag of heads, lazily, so that what is not asked for is never computed."""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .bag import Bag
from .rope import Rope

SPARSE = 4  # times as many places as entries, and sorting these is faster than counting over those
WORKSPACE = 1 << 24  # attention weights computed at a time where only their sum is wanted: 64 MiB of float32


class View:
    """A bag of heads as a policy sees it at one call.

    Shapes: `positions` (heads, n) int64, places in the original sequence; `keys`, `values` (heads, n, d) and `queries`
    (query heads, new, d), all after RoPE; `sequence`, `layer`, `head`, `budget` (heads,). The `new` entries of this call
    are the last in position, not necessarily the last in order. Everything is read only.
    """

    def __init__(
        self,
        bag: Bag,
        positions: Int[Tensor, "heads n"],
        new: int,
        budget: Int[Tensor, " heads"],
        *,
        scaling: float,
        keys: Callable[[], Tensor],
        values: Callable[[], Tensor],
        queries: Callable[[], Tensor],
        softcap: float | None = None,
        window: Int[Tensor, " heads"] | None = None,
        query_aware: bool = False,
        newest: int | None = None,
        new_keys: Callable[[], Tensor] | None = None,
        new_values: Callable[[], Tensor] | None = None,
        attended: Callable[[], Tensor] | None = None,
        pre_rope_keys: Callable[[], Tensor] | None = None,
        prepared: Mapping[str, Callable] | None = None,
        rows_of: Callable[[str, Tensor], Tensor] | None = None,
    ):
        self._bag, self._positions, self._new, self._budget, self._scaling = bag, positions, new, budget, scaling
        self._keys, self._values, self._queries = keys, values, queries
        self._softcap, self._window, self._query_aware, self._newest = softcap, window, query_aware, newest
        # where the host has these already
        self._new_keys, self._new_values, self._attended = new_keys, new_values, attended
        self._pre_rope_keys = pre_rope_keys
        self._prepared = prepared or {}  # what the policy's `needs` names
        self._rows_of = rows_of  # where the host can give some rows of `keys` or `values` without making all
        self._parts: dict[tuple[int, ...], tuple[Tensor, View]] = {}
        self._asked: set[str] = set()
        self._stored: dict[str, Tensor] = {}  # all that is handed out, to find out who writes to it
        self._versions: dict[str, int] = {}
        given = {
            "positions": positions,
            "budget": budget,
            "sequence": bag.sequence,
            "layer": bag.layer,
            "head": bag.head,
        }
        for name, tensor in given.items() if window is None else (given | {"window": window}).items():
            self._remember(name, tensor)

    positions = property(lambda self: self._positions, doc="(heads, n) int64: places in the original sequence")
    new = property(lambda self: self._new, doc="how many entries came with this call; they are the last in position")
    budget = property(lambda self: self._budget, doc="(heads,) int64: entries that each head may keep")
    scaling = property(lambda self: self._scaling, doc="what the model multiplies q.k by before the softmax")
    sequence = property(lambda self: self._bag.sequence, doc="(heads,) int64: which sample of the batch")
    layer = property(lambda self: self._bag.layer, doc="(heads,) int64")
    head = property(lambda self: self._bag.head, doc="(heads,) int64: which KV head of its layer")
    groups = property(lambda self: self._bag.groups, doc="query heads a KV head")
    window = property(lambda self: self._window, doc="(heads,) int64: the model's own sliding window, or None")
    softcap = property(lambda self: self._softcap, doc="the model's cap on attention logits, or None")
    query_aware = property(
        lambda self: self._query_aware, doc="whether the queries include the question to be answered"
    )

    @property
    def keys(self) -> Float[Tensor, "heads n d"]:
        """Keys after RoPE."""
        self._asked.add("keys")
        return self._store("keys", self._keys)

    @property
    def new_keys(self) -> Float[Tensor, "heads new d"]:
        """The keys that came with this call, in order of position: for a policy that remembers what it saw in a key, and
        so need not read them all again."""
        return self._store("new_keys", self._new_keys or (lambda: self._pick_new("keys", self._keys)))

    @property
    def values(self) -> Float[Tensor, "heads n d"]:
        """Values."""
        self._asked.add("values")
        return self._store("values", self._values)

    @property
    def queries(self) -> Float[Tensor, "query_heads new d"]:
        """Queries of this call after RoPE; the query heads of KV head h stand at h * groups to (h + 1) * groups - 1."""
        return self._store("queries", self._queries)

    @property
    def new_values(self) -> Float[Tensor, "heads new d"]:
        """The values that came with this call, in order of position."""
        return self._store("new_values", self._new_values or (lambda: self._pick_new("values", self._values)))

    @property
    def rope(self) -> Rope:
        """The model's rotary position embedding. Needs `pre_rope`."""
        return self.prepared("pre_rope")()

    @property
    def pre_rope_keys(self) -> Float[Tensor, "heads n d"]:
        """Keys before RoPE. Needs `pre_rope`."""
        rope = self.rope
        made = self._pre_rope_keys or (lambda: rope.unrotate(self.keys, self._positions))
        return self._store("pre_rope_keys", made)

    @property
    def pre_rope_queries(self) -> Float[Tensor, "query_heads new d"]:
        """Queries of this call before RoPE. Needs `pre_rope`."""
        first = self._positions.amax(-1) - (self._new - 1)
        places = first[:, None] + torch.arange(self._new, device=first.device)
        places = places.repeat_interleave(self._bag.groups, 0)
        return self._store("pre_rope_queries", lambda: self.rope.unrotate(self.queries, places))

    @property
    def new_output_norms(self) -> Float[Tensor, "heads new"]:
        """L1 norm of what each value of this call adds to the layer's output, mean over the query heads of the KV head:
        |W_O v|. In order of position. Needs `output_projection`."""
        return self._store("new_output_norms", self.prepared("output_projection"))

    @property
    def new_repeated(self) -> Float[Tensor, "heads new"]:
        """The most attention that each entry of this call received from any query while the model, asked to, repeated the
        text; 1 for what came after the text. In order of position. Needs `second_pass`."""
        return self._store("new_repeated", self.prepared("second_pass"))

    @property
    def future(self) -> Float[Tensor, "heads n"]:
        """What each entry will receive from all later queries of the full cache. Needs `future`."""
        return self._store("future", self.prepared("future"))

    @property
    def age(self) -> Int[Tensor, "heads n"]:
        """How many positions an entry lies behind the newest one of its head; the newest has age 0."""
        return self._store("age", self._ages)

    @property
    def rank(self) -> Int[Tensor, "heads n"]:
        """How many of the entries held by its head stand before an entry in the sequence; the oldest has rank 0."""
        return self._store("rank", self._ranks)

    def attention(self, last: int = 1) -> Float[Tensor, "heads last n"]:
        """What the `last` newest queries of this call pay to each entry: causal softmax of each query head over the
        entries held, averaged over the query heads of a KV head. Raises ValueError unless 1 <= last <= new."""
        return self.weights(last).mean(1)

    def weights(self, last: int = 1) -> Float[Tensor, "heads groups last n"]:
        """The same before the mean: the softmax of every query head, in float32."""
        if not 1 <= last <= self._new:
            raise ValueError(f"attention(last={last}) of a call with {self._new} queries; ask for 1 to {self._new}")
        self._asked.add("attention")
        known = self._attended if last == self._new == 1 else None
        return self._store(f"weights({last})", known or (lambda: self.rows(self._new - last, self._new)))

    def received(self) -> Float[Tensor, "heads n"]:
        """What each entry received from all queries of this call: `attention(last=new).sum(1)` in bounded memory."""
        self._asked.add("attention")
        if self._new == 1:
            return self.weights(1).mean(1).squeeze(1)
        return self._store("received", self._received)

    def _received(self) -> Tensor:
        total = torch.zeros(self._positions.shape, device=self._positions.device)
        for start, stop in self.blocks():
            total += self.rows(start, stop).sum(2).mean(1)
        return total

    def blocks(self, first: int = 0) -> list[tuple[int, int]]:
        """The queries of this call, from the `first` on, in ranges whose weights fit the workspace."""
        heads, n = self._positions.shape
        rows = max(1, WORKSPACE // (heads * self._bag.groups * n))
        return [(start, min(start + rows, self._new)) for start in range(first, self._new, rows)]

    def mean_over_layer(self, scores: Float[Tensor, "heads n"]) -> Float[Tensor, "heads n"]:
        """The mean of `scores` over the heads of the same sequence and layer. Raises ValueError where these heads do
        not hold the same positions or stand in different views, as under an allocation that favours some of them."""
        self._check_whole()
        if self._alike(self._positions):
            return self._layer_means(scores)
        order = self._positions.argsort(-1)  # the same positions in another order
        if not self._alike(self._positions.gather(-1, order)):
            raise ValueError("the heads of one layer hold different positions; a mean over them has no meaning")
        means = self._layer_means(scores.gather(-1, order))
        return torch.empty_like(means).scatter_(-1, order, means)

    def whole_layers(self) -> list[Int[Tensor, " rows"]]:
        """The rows of each sequence and layer. Raises ValueError where only some heads of a layer stand in this view."""
        self._check_whole()
        layer_of = self._bag.layer_of
        return [(layer_of == number).nonzero()[:, 0] for number in range(int(layer_of.max()) + 1)]

    def _check_whole(self) -> None:
        if not self._bag.whole:
            raise ValueError(
                "only some heads of a layer stand in this view: the others hold another number of entries, so a mean over "
                "the layer has no meaning; use a policy that scores each head by itself, or one share for all heads"
            )

    def part(self, sequences: tuple[int, ...], needs: frozenset[str]) -> tuple[Int[Tensor, " rows"], "View"]:
        """The rows of these sequences of the batch, and a view of them alone for a policy with these needs."""
        if sequences not in self._parts:
            rows, bag = self._bag.part(sequences)
            self._parts[sequences] = rows, self if len(rows) == len(self._bag) else self._make_part(rows, bag, needs)
        return self._parts[sequences]

    def _make_part(self, rows: Tensor, bag: Bag, needs: frozenset[str]) -> "View":
        def some(name: str) -> Callable[[], Tensor]:
            return lambda: getattr(self, name).index_select(0, rows)

        def column(name: str) -> Callable[[], Tensor]:
            if self._rows_of is not None:
                return lambda: self._rows_of(name, rows)
            make = self._keys if name == "keys" else self._values
            return lambda: self._store(name, make).index_select(0, rows)

        def prepared(name: str) -> Callable:
            made = self._prepared[name]
            return made if name == "pre_rope" else lambda: made().index_select(0, rows)

        groups = torch.arange(bag.groups, device=rows.device)
        queries = (rows[:, None] * bag.groups + groups).flatten()
        return View(
            bag,
            self._positions.index_select(0, rows),
            self._new,
            self._budget.index_select(0, rows),
            scaling=self._scaling,
            softcap=self._softcap,
            window=None if self._window is None else self._window.index_select(0, rows),
            query_aware=self._query_aware,
            newest=self._newest,
            keys=column("keys"),
            values=column("values"),
            queries=lambda: self.queries.index_select(0, queries),
            new_keys=some("new_keys"),
            new_values=some("new_values"),
            attended=lambda: self.weights(1).index_select(0, rows),
            prepared={name: prepared(name) for name in needs},
        )

    def shown_to(self, needs: frozenset[str], budget: Int[Tensor, " heads"]) -> "View":
        """The same entries for a policy with these needs, under a budget; what is computed for one serves all."""
        other = copy.copy(self)
        other._budget = budget
        other._prepared = {name: self._prepared[name] for name in needs}
        other._remember("budget", budget)
        return other

    def changed(self) -> list[str]:
        """The names of the tensors that somebody wrote to since they were handed out."""
        return [name for name, tensor in self._stored.items() if _version(tensor) != self._versions[name]]

    def fill_new(
        self, column: Float[Tensor, "heads n"], values: Float[Tensor, "heads new"]
    ) -> Float[Tensor, "heads n"]:
        """`column` with `values`, in order of position, at the entries that came with this call."""
        if self._new == 1:
            return torch.where(self.age == 0, values, column)
        order = (self._new - 1 - self.age).clamp(min=0)
        return torch.where(self.age < self._new, values.gather(-1, order), column)

    @property
    def asked(self) -> frozenset[str]:
        """Which of `keys`, `values` and `attention` somebody has asked for."""
        return frozenset(self._asked)

    def asked_for_weights(self, last: int) -> bool:
        """Whether `weights(last)` has been computed, so that a host can use it instead of computing it again."""
        return f"weights({last})" in self._stored

    def _alike(self, rows: Tensor) -> bool:
        """Whether the rows of each layer are equal."""
        return not (rows != rows.index_select(0, self._bag.leader)).count_nonzero()  # many times faster than all()

    def _layer_means(self, scores: Tensor) -> Tensor:
        means = self._bag.mean_of @ scores.float()  # one a layer, so its heads agree to the last bit
        return means.index_select(0, self._bag.layer_of)

    def _store(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self._stored:
            with normal_tensors():
                self._remember(name, ordinary(make()))
        return self._stored[name]

    def _remember(self, name: str, tensor: Tensor) -> None:
        self._stored[name], self._versions[name] = tensor, _version(tensor)

    def prepared(self, name: str) -> Callable:
        """What the host prepared for a need of the policy. Raises ValueError where the policy did not name it."""
        if name not in self._prepared:
            raise ValueError(f"{name!r} is not prepared for this policy; name it in the policy's `needs`")
        return self._prepared[name]

    def _pick_new(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        column = self._store(name, make)
        places = self.age.argsort(dim=-1)[:, : self._new].flip(-1)
        return column.gather(1, places[..., None].expand(*places.shape, column.shape[-1]))

    def _ages(self) -> Tensor:
        newest = self._positions.amax(-1, keepdim=True) if self._newest is None else self._newest
        return newest - self._positions

    def _ranks(self) -> Tensor:
        heads, n = self._positions.shape
        places = 1 + (int(self._positions.max()) if self._newest is None else self._newest)
        if places > SPARSE * n:
            return self._positions.argsort(-1).argsort(-1)
        there = self._positions.new_zeros(heads, places).scatter_(1, self._positions, 1)  # counting, no sorting
        return there.cumsum(-1).gather(1, self._positions) - 1

    def rows(self, start: int, stop: int) -> Float[Tensor, "heads groups rows n"]:
        """The softmax weights of the queries `start` to `stop` of this call, per query head, in float32."""
        heads, n = self._positions.shape
        keys = self._store("keys", self._keys)
        rows = stop - start
        queries = self.queries.view(heads, self._bag.groups, self._new, -1)[:, :, start:stop]
        queries = queries.reshape(heads, -1, keys.shape[-1]) * self._scaling
        logits = (queries @ keys.transpose(1, 2)).float().view(heads, self._bag.groups, rows, n)
        if self._softcap is not None:
            logits = logits.div_(self._softcap).tanh_().mul_(self._softcap)
        if self._new > 1 or self._window is not None:
            logits.masked_fill_(self.hidden(start, stop)[:, None], -torch.inf)
        return logits.softmax(-1)

    def hidden(self, start: int, stop: int) -> Bool[Tensor, "heads rows n"]:
        """What the queries `start` to `stop` of this call do not see: what comes later, and what lies behind the model's
        own sliding window."""
        at = torch.arange(self._new - 1 - start, self._new - 1 - stop, -1, device=self._positions.device)
        behind = self.age[:, None] - at[:, None]  # the age of an entry as that query sees it, negative before it exists
        hidden = behind < 0
        if self._window is not None:
            hidden |= behind >= self._window[:, None, None]
        return hidden


def normal_tensors() -> AbstractContextManager:
    """What is kept or watched must be an ordinary tensor, which counts its changes, also under inference mode."""
    if not torch.is_inference_mode_enabled():
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.no_grad())
    return stack


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it where it was made under inference mode, which keeps no count of changes."""
    if not tensor.is_inference():
        return tensor
    with normal_tensors():
        return tensor.clone()


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; one made under inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version
