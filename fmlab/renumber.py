"""Positions counted within the cache: keys are stored before RoPE and turned to their rank among what is held."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from .rope import Rope, rope_of

POSITIONS = ("original", "renumbered")


def check_positions(positions: str) -> None:
    """Raise ValueError for a scheme that does not exist."""
    if positions not in POSITIONS:
        raise ValueError(f"positions={positions!r}; give one of {', '.join(map(repr, POSITIONS))}")


class Renumbering:
    """StreamingLLM's own positions (arXiv:2309.17453, section 3.2): an entry stands at its rank among the entries of its
    head, the i-th newcomer of a call after all that are held. So no distance ever exceeds what is held.

    Every key is turned anew at every call, since an eviction moves those behind it.
    """

    def __init__(self, model: PreTrainedModel):
        rope = rope_of(model)
        if rope is None:
            raise ValueError(
                f"the rotary embedding of {type(model).__name__} cannot be taken off; use original positions"
            )
        self._rope: Rope = rope

    def __deepcopy__(self, memo: dict) -> "Renumbering":
        return self  # it is the model's

    def taken_off(self, x: Float[Tensor, "*heads new d"], first: int) -> Float[Tensor, "*heads new d"]:
        """Keys or queries before RoPE, where the model put them at `first` and the places after it."""
        return self._rope_on(x).unrotate(x, _places(x, first)).to(x.dtype)

    def from_on(self, x: Float[Tensor, "*heads new d"], first: int) -> Float[Tensor, "*heads new d"]:
        """Put on again, at `first` and the places after it."""
        return self._rope_on(x).rotate(x, _places(x, first)).to(x.dtype)

    def ranked(self, keys: Float[Tensor, "heads n d"], positions: Int[Tensor, "heads n"]) -> Float[Tensor, "heads n d"]:
        """Put on again, at the rank of each key's position among those of its head."""
        return self._rope_on(keys).rotate(keys, positions.argsort(-1).argsort(-1)).to(keys.dtype)

    def _rope_on(self, x: Tensor) -> Rope:
        return self._rope.to(x.device)


def _places(x: Tensor, first: int) -> Tensor:
    return torch.arange(first, first + x.shape[-2], device=x.device).expand(x.shape[:-1])
