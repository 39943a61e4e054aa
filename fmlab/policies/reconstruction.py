"""A policy that lets the model repeat the text and watches what it looks at."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..core import Policy, Stats, View
from .nesting import remembered


@dataclass(frozen=True)
class KVZip(Policy):
    """KVzip (arXiv:2505.23416): keep what the model looks at while it repeats the text.

    The score is the most attention that an entry received from any query of the repetition, in any query head of its KV
    head (equation 2); it is known before the text is read, so prefill chunks change nothing. That takes a second pass,
    which `fm.prefill` makes for its forks, and `fm.record` with `second_pass=True` for replays. What came after the text,
    as in one-token decode, was never repeated and scores 1, the most there is. The first tokens are scored as all others
    are, whatever they belong to. The paper shares one budget among all heads of all layers; here each head is held to
    its own, or to what an allocation such as `Ada` gives it of its layer's.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"second_pass"})

    def observe(self, view: View, stats: Stats) -> Stats:
        return {"repeated": remembered(view, stats.get("repeated"), view.new_repeated)}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return stats["repeated"]
