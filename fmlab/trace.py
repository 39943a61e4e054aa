"""A recorded forward pass: what every attention head was given, in a file that cannot run code."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .bag import Bag
from .rope import Rope
from .view import View

FORMAT = "fmlab trace 1"
COLUMNS = ("output_norms", "repeated")


class TraceError(ValueError):
    """A file is no trace, or not a whole one."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What the attention of some layers was given while the full model read a text: all that a replay needs.

    `queries` (layers, query_heads, T, d), `keys` and `values` (layers, kv_heads, T, d), after RoPE; `ids` int64 (T,);
    `tokens` the T pieces of the text; `layers` which layers of the model these are; `windows` each layer's own sliding
    window, or None; `scaling` and `softcap` as the model's attention uses them; `depth` how many layers the model has
    (None: an older file does not say); `query_aware` whether the question to be answered is part of the text. For
    policies that need more, or None where it was not recorded: `output_norms`, the L1 norm of what each value adds to
    the layer's output; `repeated`, the most attention each token received while the model repeated the text; `rope`, the
    rotary embedding.
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
    query_aware: bool = False

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
        return self.only([at])

    def only(self, at: Sequence[int]) -> "Trace":
        """The trace of some of the recorded layers; `at` counts them."""
        tuples = {"layers": self.layers, "windows": self.windows or (None,) * len(self.layers)}
        tensors = {"queries": self.queries, "keys": self.keys, "values": self.values, **self.columns}
        picked = {name: tensor[list(at)] for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **{name: tuple(row[i] for i in at) for name, row in tuples.items()}, **picked)

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
            query_aware=self.query_aware,
            keys=lambda: self.keys.flatten(0, 1).float(),
            values=lambda: self.values.flatten(0, 1).float(),
            queries=lambda: self.queries.flatten(0, 1).float(),
        )

    def save(self, path: str | Path) -> Path:
        """Write the trace as safetensors and return the path."""
        about = {
            "format": FORMAT, "tokens": self.tokens, "layers": self.layers, "model": self.model,
            "scaling": self.scaling, "softcap": self.softcap, "windows": self.windows,
            "depth": self.depth, "query_aware": self.query_aware,
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
            plain = {name: about[name] for name in ("model", "scaling", "softcap")}
            # Older files lack these.
            later = {"depth": about.get("depth"), "query_aware": bool(about.get("query_aware"))}
            trace = cls(**tensors, **tuples, **plain, **later, rope=rope)
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
