"""Record what every attention head was given while the full model reads a text."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .attach import attached, tag, unreachable
from .attention import attend
from .trace import Trace
from .view import Bag, View


class _RecordingLayer(CacheLayerMixin):
    """A layer that keeps what its attention was given in one call."""

    def __init__(self, number: int, keep: bool, dtype: torch.dtype):
        super().__init__()
        self.number, self.keep, self.keep_dtype = number, keep, dtype
        self.kept: dict[str, Tensor] = {}
        self.scaling: float | None = None
        self.window: int | None = None
        self.softcap: float | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return tag(key_states, self), value_states

    def attend(self, query: Tensor, scaling: float, window: int | None, softcap: float | None) -> Tensor:
        self.scaling, self.window, self.softcap = scaling, window, softcap
        keys, values = self.keys.flatten(0, 1), self.values.flatten(0, 1)
        _, query_heads, tokens, d = query.shape
        rows, device = len(keys), query.device
        bag = Bag.of(1, [self.number], rows, query_heads // rows, device)
        view = View(
            bag,
            torch.arange(tokens, device=device).expand(rows, tokens),
            tokens,
            torch.full((rows,), tokens, device=device),
            scaling=scaling,
            softcap=softcap,
            window=None if window is None else torch.full((rows,), window, device=device),
            keys=lambda: keys,
            values=lambda: values,
            queries=lambda: query.reshape(query_heads, tokens, d),
        )
        if self.keep:
            kept = {"queries": query, "keys": self.keys, "values": self.values}
            self.kept = {name: tensor[0].to("cpu", self.keep_dtype, copy=True) for name, tensor in kept.items()}
        self.keys = self.values = None
        return attend(view, query, keys, values)

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        return (query_length if isinstance(query_length, int) else query_length.shape[0]), 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


@torch.inference_mode(False)
@torch.no_grad()
def record(lm, text: str | Sequence[int] | Tensor, layers: Sequence[int] | None = None, dtype=torch.float16) -> Trace:
    """Run the model once over a text or its ids and keep what every attention head was given.

    `layers` chooses which layers are kept (all), `dtype` in which precision. All layers of SmolLM2-135M in half
    precision take 58 kB a token. Raises ValueError for an empty text or a layer that the model does not have.
    """
    ids = lm.ids(text)
    count = lm.model.config.get_text_config(decoder=True).num_hidden_layers
    chosen = list(range(count)) if layers is None else list(layers)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(count)):
        raise ValueError(f"layers={layers!r}; choose different layers from 0 to {count - 1}")
    recorders = [_RecordingLayer(number, number in chosen, dtype) for number in range(count)]
    with attached(lm.model):
        lm.model.base_model(
            input_ids=ids[None].to(lm.model.device), past_key_values=Cache(layers=recorders), use_cache=True
        )
    if any(layer.scaling is None for layer in recorders):
        raise unreachable(lm.model)
    kept = [recorders[number] for number in chosen]
    if len({(layer.scaling, layer.softcap) for layer in kept}) > 1:
        raise ValueError("the chosen layers scale their attention differently; record them one by one")
    stacked = {name: torch.stack([layer.kept[name] for layer in kept]) for name in ("queries", "keys", "values")}
    return Trace(
        ids=ids.cpu(),
        tokens=tuple(lm.pieces(ids)),
        layers=tuple(chosen),
        model=lm.name,
        scaling=kept[0].scaling,
        softcap=kept[0].softcap,
        windows=tuple(layer.window for layer in kept),
        **stacked,
    )
