"""A press of kvpress as a policy, where kvpress is installed: its scores, this lab's budgets."""

from copy import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .core import Policy, Stats, View

INSTALL = "pip install kvpress 'transformers>=5.2,<5.3'"


@dataclass(frozen=True)
class Press(Policy):
    """A ScorerPress of kvpress asked for its scores: `Press(KnormPress())`, with any budget and in any host.

    The press is given the keys and values held of a whole layer, in order of position; its module knows how many heads
    there are and the number of the layer, its hidden states their shape, and with `attentions` it has the softmax of
    every query of the call, as under eager attention. What else it reads raises ValueError, naming it. Its
    `compression_ratio` is set to what the budget leaves.

    After a prompt in one call this keeps what kvpress keeps. kvpress leaves it at that; here a press is asked at every
    eviction. At one-token decode `attentions` have one row: a press that sums over queries judges by the last one alone,
    and one that wants a window of them (SnapKVPress) fails as it does on a short prompt. A press that draws random
    numbers draws anew each time, so a run is repeated only with its seed. Raises ImportError without kvpress, TypeError
    for anything but a ScorerPress.
    """

    listed: ClassVar[bool] = False  # no words spell a press

    press: object
    attentions: bool = False

    def __post_init__(self):
        try:
            from kvpress import ScorerPress
        except ModuleNotFoundError as error:
            raise ImportError(f"kvpress cannot be imported ({error}); {INSTALL}") from error
        if not isinstance(self.press, ScorerPress):
            raise TypeError(f"{self.press!r} is no ScorerPress; give one that scores, such as KnormPress()")

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        order = view.positions.argsort(-1)
        sorted_scores = torch.empty(order.shape, device=order.device)
        columns = {"keys": view.keys, "values": view.values}
        columns = {name: column.gather(1, _like(order, column)) for name, column in columns.items()}
        if self.attentions:
            weights = view.weights(view.new)
            columns["attentions"] = weights.gather(-1, order[:, None, None].expand(weights.shape))
        for rows in view.whole_layers():
            mine = {name: column[rows] for name, column in columns.items()}
            sorted_scores[rows] = self._ask(view, rows, mine).to(sorted_scores)
        return torch.empty_like(sorted_scores).scatter_(-1, order, sorted_scores)

    def _ask(self, view: View, rows: Tensor, columns: dict[str, Tensor]) -> Tensor:
        """The scores of one layer of one sequence, (heads, n)."""
        keys, weights = columns["keys"], columns.get("attentions")
        heads, n, d = keys.shape
        press = copy(self.press)  # the user's own stays as it is
        press.compression_ratio = max(0.0, 1 - (int(view.budget[rows[0]]) + 0.5) / n)  # so that rounding down is exact
        config = SimpleNamespace(num_attention_heads=heads * view.groups, num_key_value_heads=heads, head_dim=d)
        module = {"config": config, "layer_idx": int(view.layer[rows[0]]), "head_dim": d}
        scores = press.score(
            module=_Only(press, "module", num_key_value_groups=view.groups, scaling=view.scaling, **module),
            hidden_states=_Only(press, "hidden_states", shape=(1, view.new)),
            keys=keys[None],
            values=columns["values"][None],
            attentions=_Only(press, "attentions") if weights is None else weights.flatten(0, 1)[None],
            kwargs=_Only(press, "kwargs"),
        )
        return scores[0]


class _Only:
    """Stands where a press expects something of the model; it has what is given and says what else was wanted."""

    def __init__(self, press: object, name: str, **has: object):
        self.__dict__.update(has)
        self._press, self._name = press, name

    def __getattr__(self, wanted: str) -> object:
        return self._refuse(f".{wanted}")

    def __getitem__(self, wanted: object) -> object:
        return self._refuse(f"[{wanted!r}]" if isinstance(wanted, str) else "[…]")

    def _refuse(self, wanted: str) -> object:
        mend = "pass attentions=True" if self._name == "attentions" else "run it in kvpress itself"
        raise ValueError(f"{self._press!r} reads {self._name}{wanted}, which a view does not have; {mend}")


def _like(order: Tensor, column: Tensor) -> Tensor:
    return order[..., None].expand(*order.shape, column.shape[-1])
