"""Which heads share the axis of a view: of which sequence, layer and place each row is."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot


@dataclass(frozen=True, eq=False)
class Bag:
    """Which heads share the axis of a view: one entry of each field per row. A live layer brings batch x its KV heads,
    a replay all layers at once."""

    sequence: Int[Tensor, " heads"]  # which sample of the batch
    layer: Int[Tensor, " heads"]
    head: Int[Tensor, " heads"]  # which KV head of the layer
    groups: int  # query heads a KV head
    whole: bool = True  # all KV heads of each of its layers are here

    @classmethod
    def of(cls, sequences: int, layers: list[int], kv_heads: int, groups: int, device=None) -> "Bag":
        """Rows in the order sequence, layer, head."""
        rows = torch.cartesian_prod(
            torch.arange(sequences), torch.tensor(layers), torch.arange(kv_heads)
        ).view(-1, 3).to(device)  # fmt: skip
        return cls(rows[:, 0], rows[:, 1], rows[:, 2], groups)

    @classmethod
    def join(cls, bags: list["Bag"]) -> "Bag":
        """The rows of all bags, one after the other."""
        fields = ([getattr(bag, name) for bag in bags] for name in ("sequence", "layer", "head"))
        return cls(*map(torch.cat, fields), bags[0].groups)

    def pick(self, rows: Int[Tensor, " picked"], whole: bool) -> "Bag":
        """Some of the rows; `whole` says whether they are all of their layers."""
        return Bag(self.sequence[rows], self.layer[rows], self.head[rows], self.groups, whole)

    def __len__(self) -> int:
        return len(self.layer)

    def part(self, sequences: tuple[int, ...]) -> tuple[Int[Tensor, " rows"], "Bag"]:
        """The rows of these sequences, and the bag of them; found once."""
        if sequences not in self._parts:
            rows = torch.isin(self.sequence, torch.tensor(sequences, device=self.sequence.device)).nonzero()[:, 0]
            self._parts[sequences] = rows, self.pick(rows, self.whole)
        return self._parts[sequences]

    @cached_property
    def _parts(self) -> dict[tuple[int, ...], tuple[Tensor, "Bag"]]:
        return {}

    @cached_property
    def layer_of(self) -> Int[Tensor, " heads"]:
        """For each row which of the layers of the bag it belongs to; those of two sequences are two."""
        return torch.stack([self.sequence, self.layer]).unique(dim=1, return_inverse=True)[1]

    @cached_property
    def leader(self) -> Int[Tensor, " heads"]:
        """For each row the first row of its sequence and layer."""
        return (self.layer_of[:, None] == self.layer_of).int().argmax(-1)

    @cached_property
    def mean_of(self) -> Float[Tensor, "layers heads"]:
        """A matrix that averages over the rows of each sequence and layer."""
        member = one_hot(self.layer_of).T.float()
        return member / member.sum(-1, keepdim=True)
