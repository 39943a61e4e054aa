"""Rotary position embedding taken off and put on again, for what is defined on keys and queries before it."""

import sys
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

STEADY = frozenset({"default", "linear", "llama3", "yarn", "proportional"})  # frequencies that no length changes
PROBE = (3, 1, 1_000)  # places at which a model's own rotation is compared with ours


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary position embedding (arXiv:2104.09864) in the half-split layout: dimension i turns with i + r / 2.

    `inv_freq` (r / 2,): radians a position; r may be less than the dimension d of a head, and the rest is left alone.
    `scaling` multiplies what is rotated (yarn).
    """

    inv_freq: Float[Tensor, " half"]
    scaling: float = 1.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rope) and self.scaling == other.scaling and torch.equal(self.inv_freq, other.inv_freq)

    def rotate(self, x: Float[Tensor, "*heads n d"], positions: Int[Tensor, "*heads n"]) -> Float[Tensor, "*heads n d"]:
        """`x` as it is attended to from these places, in float32 or wider."""
        return self._turn(x, positions, 1.0, self.scaling)

    def unrotate(
        self, x: Float[Tensor, "*heads n d"], positions: Int[Tensor, "*heads n"]
    ) -> Float[Tensor, "*heads n d"]:
        """What `rotate` took to `x`."""
        return self._turn(x, positions, -1.0, 1 / self.scaling)

    def mean(self, start: Int[Tensor, " heads"], count: int, d: int) -> Float[Tensor, "heads d d"]:
        """The matrix R of `rotate`, as in R x, averaged over the `count` places from `start` on."""
        half = len(self.inv_freq)
        places = start[:, None] + torch.arange(count, device=start.device)
        angles = places[..., None].double() * self.inv_freq.double()  # (heads, count, half)
        cos, sin = angles.cos().mean(1), angles.sin().mean(1)
        matrix = torch.eye(d, dtype=torch.float64, device=start.device).repeat(len(start), 1, 1)
        i = torch.arange(half, device=start.device)
        matrix[:, i, i] = matrix[:, i + half, i + half] = cos * self.scaling
        matrix[:, i, i + half], matrix[:, i + half, i] = -sin * self.scaling, sin * self.scaling
        return matrix.float()

    def to(self, device: torch.device) -> "Rope":
        """The same on a device."""
        return Rope(self.inv_freq.to(device), self.scaling)

    def _turn(self, x: Tensor, positions: Tensor, sign: float, factor: float) -> Tensor:
        wide = x.float() if x.dtype.itemsize < 4 else x
        half = len(self.inv_freq)
        angles = positions[..., None].to(wide.dtype) * self.inv_freq.to(wide.dtype)
        cos, sin = angles.cos() * factor, angles.sin() * (sign * factor)
        a, b, rest = wide.split([half, half, wide.shape[-1] - 2 * half], -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


@torch.no_grad()
def rope_of(model: nn.Module) -> Rope | None:
    """The rotary embedding of a transformers model; None where it has none, or one that this layout does not give.

    The model's own rotation is tried at a few places and must be equal.
    """
    embedding = getattr(getattr(model, "base_model", model), "rotary_emb", None)
    apply = getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
    inv_freq = getattr(embedding, "inv_freq", None)
    if apply is None or inv_freq is None or getattr(embedding, "rope_type", None) not in STEADY:
        return None
    rope = Rope(inv_freq.detach().float().clone(), float(getattr(embedding, "attention_scaling", 1.0)))
    config = model.config.get_text_config(decoder=True)
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, len(PROBE), d, generator=generator).to(inv_freq.device)
    places = torch.tensor(PROBE, device=inv_freq.device)
    rotated, _ = apply(x, x, *embedding(x, places[None]))
    return rope if torch.allclose(rotated, rope.rotate(x, places.expand(1, 1, -1)), atol=1e-4) else None
