"""Watch every attention of a model while it reads a text once: each layer is shown as the view of one call."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from .attach import attached, tag, unreachable
from .attention import attend
from .bag import Bag
from .view import View

Look = Callable[[int, View], None]


class _WatchedLayer(CacheLayerMixin):
    """A layer that keeps nothing and shows what its attention was given, behind what was read `before`, if anything."""

    def __init__(self, number: int, look: Look, before: tuple[Tensor, Tensor] | None = None):
        super().__init__()
        self.number, self.look, self.reached = number, look, False
        self.before, self.past = before, 0 if before is None else before[0].shape[-2]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states, value_states)
        if self.before is not None:
            key_states = torch.cat([self.before[0], key_states], -2)
            value_states = torch.cat([self.before[1], value_states], -2)
        self.keys, self.values = key_states, value_states
        return tag(key_states, self), value_states

    def attend(self, query: Tensor, scaling: float, window: int | None, softcap: float | None) -> Tensor:
        keys, values = self.keys.flatten(0, 1), self.values.flatten(0, 1)
        self.keys = self.values = None
        _, query_heads, tokens, d = query.shape
        rows, device = len(keys), query.device
        view = View(
            Bag.of(1, [self.number], rows, query_heads // rows, device),
            torch.arange(self.past + tokens, device=device).expand(rows, -1),
            tokens,
            torch.full((rows,), self.past + tokens, device=device),
            scaling=scaling,
            softcap=softcap,
            window=None if window is None else torch.full((rows,), window, device=device),
            keys=lambda: keys,
            values=lambda: values,
            queries=lambda: query.reshape(query_heads, tokens, d),
        )
        self.look(self.number, view)
        self.reached = True
        return attend(view, query, keys, values)

    def get_seq_length(self) -> int:
        return self.past

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        return self.past + (query_length if isinstance(query_length, int) else query_length.shape[0]), 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


@torch.inference_mode(False)
@torch.no_grad()
def watch(
    model: PreTrainedModel, ids: Int[Tensor, " tokens"], look: Look, past: DynamicCache | None = None
) -> Float[Tensor, " hidden"]:
    """Let the model read, calling `look(layer, view)` in each layer; what it holds after the last token, before the
    language head. What it read before, a `past` that dropped nothing, is in view and stays as it is. Raises ValueError
    for a model whose attention cannot be reached."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    before = [None] * count if past is None else [(layer.keys, layer.values) for layer in past.layers]
    layers = [_WatchedLayer(number, look, before[number]) for number in range(count)]
    with attached(model):
        ids = ids[None].to(model.device)
        hidden = model.base_model(input_ids=ids, past_key_values=Cache(layers=layers), use_cache=True)
    if not all(layer.reached for layer in layers):
        raise unreachable(model)
    return hidden.last_hidden_state[0, -1]
