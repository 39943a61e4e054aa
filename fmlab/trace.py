"""A recorded forward pass, and the replay of any policy on it without the model, all layers and heads at once."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .bag import Bag
from .core import Allocation, Policy, Stats, check_allocation, check_needs, held_before_eviction
from .ragged import Ragged, joined
from .rope import Rope
from .slots import Slots, split
from .view import View

FORMAT = "fmlab trace 1"
Watch = Callable[[View, Stats], None]
COLUMNS = ("output_norms", "repeated")
REVIEWED = 64  # queries whose attention is computed at a time


class TraceError(ValueError):
    """A file is no trace, or not a whole one."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What the attention of some layers was given while the full model read a text: all that a replay needs.

    `queries` (layers, query_heads, T, d), `keys` and `values` (layers, kv_heads, T, d), after RoPE; `ids` int64 (T,);
    `tokens` the T pieces of the text; `layers` which layers of the model these are; `windows` each layer's own sliding
    window, or None; `scaling` and `softcap` as the model's attention uses them; `depth` how many layers the model has
    (None: an older file does not say). For policies that need more, or None
    where it was not recorded: `output_norms`, the L1 norm of what each value adds to the layer's output; `repeated`, the
    most attention each token received while the model repeated the text; `rope`, the rotary embedding.
    """

    ids: Int[Tensor, " tokens"]
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    model: str
    queries: Float[Tensor, "layers query_heads tokens d"]
    keys: Float[Tensor, "layers kv_heads tokens d"]
    values: Float[Tensor, "layers kv_heads tokens d_value"]
    scaling: float
    softcap: float | None = None
    windows: tuple[int | None, ...] = ()
    output_norms: Float[Tensor, "layers kv_heads tokens"] | None = None
    repeated: Float[Tensor, "layers kv_heads tokens"] | None = None
    rope: Rope | None = None
    depth: int | None = None

    def __post_init__(self):
        if len(self.tokens) != len(self.ids):
            raise TraceError(f"{len(self.tokens)} token texts for {len(self.ids)} ids; give one text per id")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Trace({self.model}, {len(self)} tokens, layers {list(self.layers)}, {self.kv_heads} KV heads, {self.nbytes / 1e6:.1f} MB)"

    def _repr_html_(self) -> str:
        start = escape("".join(self.tokens[:60]))
        return f"<code>{escape(repr(self))}</code><blockquote>{start} …</blockquote>"

    @property
    def kv_heads(self) -> int:
        """KV heads a layer."""
        return self.keys.shape[1]

    @property
    def groups(self) -> int:
        """Query heads a KV head."""
        return self.queries.shape[1] // self.kv_heads

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors."""
        return self.queries.nbytes + self.keys.nbytes + self.values.nbytes

    @property
    def columns(self) -> dict[str, Tensor | None]:
        """What was recorded of each token and KV head beside the vectors."""
        return {name: getattr(self, name) for name in COLUMNS}

    @property
    def offers(self) -> frozenset[str]:
        """What of a policy's `needs` a replay of this trace can prepare."""
        held = {"output_projection": self.output_norms, "second_pass": self.repeated, "pre_rope": self.rope}
        return frozenset({"future"} | {name for name, column in held.items() if column is not None})

    def layer(self, at: int) -> "Trace":
        """The trace of one of the recorded layers alone; `at` counts them."""
        one = slice(at, at + 1)
        names = (
            "layers",
            "windows",
            "queries",
            "keys",
            "values",
            *(k for k, c in self.columns.items() if c is not None),
        )
        return replace(self, **{name: getattr(self, name)[one] for name in names})

    def bag(self) -> Bag:
        """All heads of all recorded layers as one bag, in the order layer, head."""
        return Bag.of(1, list(self.layers), self.kv_heads, self.groups)

    def window(self) -> Int[Tensor, " heads"] | None:
        """The sliding window of each row of the bag (the length of the trace where a layer has none), or None for all."""
        if not any(self.windows):
            return None
        return torch.tensor([w or len(self) for w in self.windows]).repeat_interleave(self.kv_heads)

    def view(self) -> View:
        """The whole trace as one call of a full cache: its `rows` and `attention` are those of the model."""
        bag, tokens = self.bag(), len(self)
        return View(
            bag,
            torch.arange(tokens).expand(len(bag), tokens),
            tokens,
            torch.full((len(bag),), tokens),
            scaling=self.scaling,
            softcap=self.softcap,
            window=self.window(),
            keys=lambda: self.keys.flatten(0, 1).float(),
            values=lambda: self.values.flatten(0, 1).float(),
            queries=lambda: self.queries.flatten(0, 1).float(),
        )

    def save(self, path: str | Path) -> Path:
        """Write the trace as safetensors and return the path."""
        about = {
            "format": FORMAT, "tokens": self.tokens, "layers": self.layers, "model": self.model,
            "scaling": self.scaling, "softcap": self.softcap, "windows": self.windows,
            "depth": self.depth,
        }  # fmt: skip
        tensors = {name: getattr(self, name) for name in ("ids", "queries", "keys", "values", *COLUMNS)}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        if self.rope is not None:
            about["rope_scaling"], tensors["inv_freq"] = self.rope.scaling, self.rope.inv_freq
        save_file({k: t.contiguous() for k, t in tensors.items()}, path, {"fmlab": json.dumps(about)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read a trace that `save` wrote. Raises FileNotFoundError, or TraceError for a foreign or truncated file."""
        about, tensors = read_safetensors(path, FORMAT, "fm.record(...).save")
        try:
            inv_freq = tensors.pop("inv_freq", None)
            rope = None if inv_freq is None else Rope(inv_freq, about["rope_scaling"])
            tuples = {name: tuple(about[name]) for name in ("tokens", "layers", "windows")}
            numbers = {name: about[name] for name in ("scaling", "softcap")} | {"depth": about.get("depth")}
            trace = cls(**tensors, **tuples, **numbers, model=about["model"], rope=rope)
            layers, query_heads, tokens, d = trace.queries.shape
            whole = (
                trace.keys.shape == (layers, trace.kv_heads, tokens, d)
                and trace.values.shape[:-1] == trace.keys.shape[:-1]
                and len(trace) == tokens
                and len(trace.layers) == layers
                and len(trace.windows) in (0, layers)
                and query_heads % trace.kv_heads == 0
                and all(column is None or column.shape == trace.keys.shape[:3] for column in trace.columns.values())
                and (rope is None or (rope.inv_freq.ndim == 1 and 2 * len(rope.inv_freq) <= d))
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path} lacks a part of a trace ({error}); record it again with fm.record") from error
        if not whole:
            raise TraceError(f"{path} holds tensors that do not fit each other; record it again with fm.record")
        return trace


def read_safetensors(path: str | Path, expected: str, writer: str) -> tuple[dict, dict[str, Tensor]]:
    """The description and the tensors of one of our files; errors name the file and the mend."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; write it with {writer}(path)")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("fmlab", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()} if about.get("format") == expected else {}
    except (SafetensorError, json.JSONDecodeError, AttributeError) as error:
        raise TraceError(
            f"{path} is truncated or no safetensors file ({error}); write it again with {writer}(path)"
        ) from error
    if about.get("format") != expected:
        raise TraceError(
            f"{path} is no '{expected}' file but '{about.get('format', 'foreign')}'; write it with {writer}(path)"
        )
    return about, tensors


@torch.inference_mode(False)
@torch.no_grad()
def replay(
    trace: Trace,
    policy: Policy,
    budget: int | Allocation,
    prefill: int | Sequence[int] = 1,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> Int[Tensor, "layers kv_heads tokens"]:
    """Run a policy over a trace, every layer and head at once, and return the expiry of each token.

    The first call brings `prefill` tokens (a tuple: the sizes of the first calls), then one by one. Evicted after query
    t: t + 1; still held at the end: T + 1. Attention is computed over the survivors, from the recorded queries and keys:
    exact at layer 0, up to ties and the precision of the trace; above it an approximation, since a live model's own
    queries and keys would change with what it forgot. `progress` is called with the tokens done and may raise to cancel;
    `watch` with what the policy was shown, and its columns, at every call that evicts, before it does.
    """
    layers = _depth(trace, budget)
    check_allocation(budget, layers)
    check_needs(policy, trace.offers, f"a replay of {trace!r}")
    calls = split(len(trace), prefill)
    if type(policy).observe is Policy.observe:  # nothing is evicted or remembered before the budget is full
        calls = _join(calls, held_before_eviction(budget, layers))
    if isinstance(budget, Allocation):
        slots = Ragged(trace.bag(), budget, layers, window=trace.window())
    else:
        slots = Slots(trace.bag(), budget, window=trace.window())
    turn = _turn_apart if isinstance(slots, Ragged) else _turn
    recorded = _Recorded(trace, policy)
    done = 0
    for new in calls:
        turn(policy, slots, recorded, slice(done, done + new), watch)
        done += new
        if progress is not None and (done % 64 == 0 or done == len(trace)):
            progress(done)
    return slots.expiry().view(len(trace.layers), trace.kv_heads, -1)


class _Recorded:
    """A trace as the turns of a replay read it: one row a KV head, all layers after one another."""

    def __init__(self, trace: Trace, policy: Policy):
        self.trace, self.needs = trace, policy.needs
        self.flat = {name: getattr(trace, name).flatten(0, 1) for name in ("queries", "keys", "values")}
        self.foresight = Foresight(trace) if "future" in policy.needs else None

    def arguments(self, at: slice, rows: slice | list[int], positions: Callable[[], Tensor]) -> dict:
        """What `View` is given of the entries that arrive `at` these tokens, for some of the rows."""
        trace, flat = self.trace, self.flat
        queries = flat["queries"].unflatten(0, (-1, trace.groups))
        prepared = {
            "future": lambda: self.foresight.of(positions(), at.stop, rows),
            "pre_rope": lambda: trace.rope,
            "output_projection": lambda: trace.output_norms.flatten(0, 1)[rows, at].float(),
            "second_pass": lambda: trace.repeated.flatten(0, 1)[rows, at].float(),
        }
        return {
            "scaling": trace.scaling,
            "softcap": trace.softcap,
            "queries": lambda: queries[rows, :, at].flatten(0, 1).float(),
            "new_keys": lambda: flat["keys"][rows, at].float(),
            "new_values": lambda: flat["values"][rows, at].float(),
            "prepared": {name: prepared[name] for name in self.needs},
        }


def _turn(policy: Policy, slots: Slots, recorded: _Recorded, at: slice, watch: Watch | None) -> None:
    """One call of a replay: all heads hold equally many entries."""
    flat = recorded.flat
    slots.stage(at.stop - at.start, **{name: flat[name][:, at].float() for name in slots.data})
    view = slots.view(
        keys=lambda: _column(slots, flat, "keys"),
        values=lambda: _column(slots, flat, "values"),
        **recorded.arguments(at, slice(None), slots.staged_positions),
    )
    stats, evicted = slots.choose(policy, view)
    if watch is not None and evicted is not None:
        watch(view, stats)
    slots.settle(stats, evicted)


def _turn_apart(policy: Policy, slots: Ragged, recorded: _Recorded, at: slice, watch: Watch | None) -> None:
    """The same where they do not; what they hold is read off the trace."""
    flat = recorded.flat
    slots.stage(at.stop - at.start)

    def show(rows: list[int], positions: Tensor) -> dict:
        row = torch.tensor(rows)[:, None]
        return {
            "keys": lambda: flat["keys"][row, positions].float(),
            "values": lambda: flat["values"][row, positions].float(),
            **recorded.arguments(at, rows, lambda: positions),
        }

    parts = slots.parts(show)
    chosen = slots.choose(policy, parts)
    for part in parts if watch is not None else []:
        if any(chosen[row].evicted is not None for row in part.rows):
            watch(part.view, joined([chosen[row].stats for row in part.rows]))
    slots.settle(chosen)


def _depth(trace: Trace, budget: int | Allocation) -> int:
    """How many layers an allocation shares the budget out over."""
    if trace.depth is None and isinstance(budget, Allocation):
        raise ValueError(
            f"this trace does not say how many layers its model has, which {budget!r} asks; record it again"
        )
    return trace.depth or len(trace.layers)


class Foresight:
    """What entries of a trace will still receive, by taking off the total what has been received."""

    def __init__(self, trace: Trace):
        self._view, self._seen = trace.view(), 0
        self._left = torch.zeros(len(trace.bag()), len(trace), dtype=torch.float64)
        for block in self._view.blocks():
            self._left += self._paid(*block)

    def of(
        self, positions: Int[Tensor, "heads n"], seen: int, rows: slice | list[int] = slice(None)
    ) -> Float[Tensor, "heads n"]:
        """Of the entries at `positions` of these rows, from the queries `seen` and later; `seen` may only grow."""
        for start in range(self._seen, seen, REVIEWED):
            self._left -= self._paid(start, min(start + REVIEWED, seen))
        self._seen = seen
        return self._left[rows].gather(1, positions).clamp(min=0)

    def _paid(self, start: int, stop: int) -> Tensor:
        return self._view.rows(start, stop).mean(1).double().sum(1)


def _column(slots: Slots, flat: dict[str, Tensor], name: str) -> Tensor:
    """The keys or values that are held; from the first time a policy asks they are kept up to date by overwriting."""
    if not slots.has(name):
        places = slots.staged_positions()
        index = places[..., None].expand(*places.shape, flat[name].shape[-1])
        slots.adopt(name, flat[name].gather(1, index).float())
    return slots.staged(name)


def _join(calls: list[int], budget: int) -> list[int]:
    """The same calls with the first of them, as many as fit the budget together, made one."""
    total = count = 0
    while count < len(calls) and total + calls[count] <= budget:
        total += calls[count]
        count += 1
    return [total] * (total > 0) + calls[count:]
