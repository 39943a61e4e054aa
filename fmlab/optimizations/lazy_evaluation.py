"""A replay in which a policy is shown what it asks for against one in which all it could ask for is computed.

How much that is hangs on the policy: a measured gain is that of the policy in `inputs`, here one that asks for key norms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from ..core import Policy, Stats
from ..policies import KeyNorm
from ..record import record
from ..rerun import replay
from ..trace import Trace
from ..view import View
from . import real
from .pair import Floor, Pair
from .portions import piece

LAYERS = (0, 1)
POLICY = KeyNorm()


@dataclass(frozen=True)
class Everything(Policy):
    """A policy to which every column of a view is computed at every call, whether it asks or not.

    What a host must prepare because a policy `needs` it is left out: no host computes that unasked.
    """

    listed = False

    policy: Policy
    attention: bool = True
    """Whether the weights of all queries are among it."""

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs

    def observe(self, view: View, stats: Stats) -> Stats:
        piece(PAIR.name, self._compute)(view)
        return self.policy.observe(view, stats)

    def _compute(self, view: View) -> None:
        for name in ("keys", "values", "queries", "new_keys", "new_values", "age", "rank"):
            getattr(view, name)
        if self.attention:
            view.attention(last=view.new)
            view.received()

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return self.policy.score(view, stats)


def all_that_could_be_asked(
    trace: Trace, policy: Policy, budget: int, prefill: int
) -> Int[Tensor, "layers kv_heads tokens"]:
    """The expiry of a replay on views that are computed whole."""
    return replay(trace, Everything(policy), budget, prefill)


def what_is_asked(trace: Trace, policy: Policy, budget: int, prefill: int) -> Int[Tensor, "layers kv_heads tokens"]:
    """The same on the views of the lab, which are lazy."""
    return replay(trace, policy, budget, prefill)


def inputs(size: int, seed: int, policy: Policy = POLICY) -> tuple[Trace, Policy, int, int]:
    """Two layers of SmolLM2 as it read a stretch of prose; a quarter of it is kept, half comes in the first call."""
    trace = record(real.lm(), real.text_ids(max(size, 1), seed), layers=LAYERS)
    return (trace if size else _empty(trace)), policy, max(1, size // 4), max(1, size // 2)


def _empty(trace: Trace) -> Trace:
    """A trace of no token, which `record` does not make."""
    per_token: Mapping[str, Tensor | None] = {
        name: getattr(trace, name) for name in ("queries", "keys", "values", "output_norms", "repeated")
    }
    none = {name: tensor if tensor is None else tensor[:, :, :0] for name, tensor in per_token.items()}
    return replace(trace, ids=trace.ids[:0], tokens=(), **none)


def floor(size: int) -> Floor:
    heads, numbers, nbytes = 3 * len(LAYERS), 64, 2
    return Floor(size * heads * numbers * nbytes, "bytes", "every recorded key read once for its norm")


PAIR = Pair(
    name="lazy evaluation: only what a policy asks",
    claim=None,
    source="the progress report that this lab began from, phase 2: lazy evaluation, 'variable', without a number",
    baseline=all_that_could_be_asked,
    optimised=what_is_asked,
    inputs=inputs,
    sizes=(32, 128, 512),
    unit="tokens",
    floor=floor,
    used_in="fmlab.view.View",
)
