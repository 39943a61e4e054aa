"""What a policy may need of a model beyond the attention of one layer: its rotary embedding, its output projections."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from .core import Policy, check_needs
from .rope import Rope, rope_of
from .view import WORKSPACE

PROJECTIONS = ("o_proj", "dense", "out_proj")  # what the classes of transformers call W_O
LIVE = frozenset({"pre_rope", "output_projection"})


class Equipment:
    """What one model can prepare for a policy."""

    def __init__(self, model: PreTrainedModel):
        self.rope: Rope | None = rope_of(model)
        self.projections: dict[int, Tensor] = output_projections(model)

    def __deepcopy__(self, memo: dict) -> "Equipment":
        return self  # it is the model's, and a copy of a cache runs on the same model

    @property
    def offers(self) -> frozenset[str]:
        """The names of `needs` that this model can serve."""
        found = {"pre_rope": self.rope is not None, "output_projection": bool(self.projections)}
        return frozenset(name for name, there in found.items() if there)

    def check(self, policy: Policy, host: str, others: frozenset[str] = frozenset()) -> None:
        """Raise ValueError where the policy needs what neither this model nor the host has."""
        check_needs(policy, self.offers | others, host)

    def prepared(
        self, needs: frozenset[str], layer: int, values: Callable[[], Tensor], sequences: int
    ) -> Mapping[str, Callable]:
        """What `View` takes; `values` gives those of this call, (heads, new, d)."""
        made: dict[str, Callable] = {}
        if "pre_rope" in needs:
            made["pre_rope"] = lambda: self.rope.to(values().device)
        if "output_projection" in needs:
            made["output_projection"] = lambda: output_norms(values(), self.projections[layer], sequences)
        if "second_pass" in needs:  # only `fm.prefill` makes one, and what comes now came after the text
            made["second_pass"] = lambda: torch.ones(values().shape[:2], device=values().device)
        return made


def output_projections(model: PreTrainedModel) -> dict[int, Float[Tensor, "hidden inputs"]]:
    """The weights W_O of every layer's attention, by layer; empty where some layer's is not found."""
    found = {}
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        projection = next((p for p in (getattr(module, name, None) for name in PROJECTIONS) if p is not None), None)
        if layer is not None and projection is not None:
            found[layer] = projection.weight.detach()
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    return found if set(found) == set(range(layers)) else {}


def output_norms(
    values: Float[Tensor, "heads new d"], projection: Float[Tensor, "hidden inputs"], sequences: int = 1
) -> Float[Tensor, "heads new"]:
    """L1 norm of W_O v, mean over the query heads of each KV head (CriticalKV, arXiv:2502.03805, equation 8)."""
    heads, new, d = values.shape
    kv_heads, hidden = heads // sequences, projection.shape[0]
    weights = projection.view(hidden, -1, d).permute(1, 2, 0)  # (query heads, d, hidden)
    groups = len(weights) // kv_heads
    rows = values.view(sequences, kv_heads, new, d).transpose(0, 1).reshape(kv_heads, -1, d)
    norms = [
        (part.repeat_interleave(groups, 0) @ weights).abs().sum(-1, dtype=torch.float32)
        for part in rows.split(max(1, WORKSPACE // (len(weights) * hidden)), 1)
    ]
    mean = torch.cat(norms, 1).view(kv_heads, groups, sequences, new).mean(1)
    return mean.transpose(0, 1).reshape(heads, new)
