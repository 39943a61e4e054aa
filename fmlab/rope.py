"""Rotary position embedding taken off and put on again, for what is defined on keys and queries before it."""

import sys
from dataclasses import dataclass, field

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
    _tables: dict = field(default_factory=dict, init=False, repr=False)

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
        turn = self.inv_freq.double()
        # of e^(i turn k) over k = 0 ... n - 1 the mean is e^(i turn (n - 1) / 2) sin(n turn / 2) / (n sin(turn / 2))
        length = ((turn * count / 2).sin() / (count * (turn / 2).sin())).masked_fill(turn == 0, 1.0)
        angles = (start[:, None] + (count - 1) / 2) * turn  # (heads, half)
        cos, sin = angles.cos() * length, angles.sin() * length
        matrix = torch.eye(d, dtype=torch.float64, device=start.device).repeat(len(start), 1, 1)
        i = torch.arange(half, device=start.device)
        matrix[:, i, i] = matrix[:, i + half, i + half] = cos * self.scaling
        matrix[:, i, i + half], matrix[:, i + half, i] = -sin * self.scaling, sin * self.scaling
        return matrix.float()

    def to(self, device: torch.device) -> "Rope":
        """The same on a device."""
        return self if self.inv_freq.device == device else Rope(self.inv_freq.to(device), self.scaling)

    def _turn(self, x: Tensor, positions: Tensor, sign: float, factor: float) -> Tensor:
        wide = x.float() if x.dtype.itemsize < 4 else x
        half = len(self.inv_freq)
        cos, sin = (table[positions] for table in self._table(positions, wide.dtype))
        if factor != 1:
            cos, sin = cos * factor, sin * factor
        a, b, rest = wide.split([half, half, wide.shape[-1] - 2 * half], -1)
        turned = torch.addcmul(a * cos, b, sin, value=-sign), torch.addcmul(b * cos, a, sin, value=sign)
        return torch.cat([*turned, rest], -1)

    def _table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every place up to the last of these, (places, r / 2); kept, and doubled when outgrown."""
        places = int(positions.max()) + 1 if positions.numel() else 1
        known = self._tables.get(dtype)
        if known is None or len(known[0]) < places:
            at = torch.arange(1 << (places - 1).bit_length(), device=self.inv_freq.device)
            angles = at[:, None].to(dtype) * self.inv_freq.to(dtype)
            self._tables[dtype] = known = angles.cos(), angles.sin()
        return known


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
