"""Replays of one trace, kept beside it so that a slider need not wait: policies by budgets, the optimum, and regret."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from .apart import apart
from .core import Policy, within
from .metrics import mass_recall
from .oracle import oracle
from .rerun import replay
from .trace import Trace, TraceError, read_safetensors

FORMAT = "fmlab replays 1"
OPTIMUM = "optimum"  # stands where a policy's label does; no policy has it, since those are written as calls

Recall = Callable[[Int[Tensor, "layers kv_heads tokens"]], Float[Tensor, "layers kv_heads"]]


class Replays:
    """Every replay of one trace that has been asked for, computed once, and the exact optimum of every budget likewise.

    A policy is known by its class and its repr. From a file only the library's own policies are taken, since the code
    of a class of your own may have changed since.
    """

    def __init__(self, trace: Trace):
        self.trace = trace
        self._known: dict[tuple, Tensor] = {}
        self._recall: dict[tuple, Tensor] = {}

    def __len__(self) -> int:
        return len(self._known)

    def expiry(
        self, policy: Policy, budget: int, prefill: int = 1, progress: Callable[[int], None] | None = None
    ) -> Int[Tensor, "layers kv_heads tokens"]:
        """As `replay`, computed at the first call only."""
        key = (*_identity(policy), budget, prefill)
        if key not in self._known:
            self._known[key] = replay(self.trace, policy, budget, prefill, progress).to(_dtype(self.trace))
        return self._known[key].long()

    def fill(self, cells: Iterable[tuple[Policy, int]], prefill: int = 1, jobs: int = -1) -> None:
        """Compute the replays of a grid of (policy, budget) that are not known yet, in several processes (-1: one a core).

        The processes take seconds to start, and a replay of one thread may round otherwise than one of several. What is
        finished before an error or an interrupt is kept. Raises what `replay` raises, such as BudgetError.
        """
        waiting = list(dict.fromkeys(cell for cell in cells if not self.has(*cell, prefill)))
        for (policy, budget), expiry in apart(self.trace, waiting, prefill, jobs) if waiting else ():
            self._known[*_identity(policy), budget, prefill] = expiry.to(_dtype(self.trace))

    def oracle(
        self, budget: int, prefill: int = 1, progress: Callable[[int], None] | None = None
    ) -> Int[Tensor, "layers kv_heads tokens"]:
        """As `fm.oracle`, computed at the first call only: seconds for a thousand tokens, minutes for several."""
        key = (None, OPTIMUM, budget, prefill)
        if key not in self._known:
            self._known[key] = oracle(self.trace, budget, prefill, progress).to(_dtype(self.trace))
        return self._known[key].long()

    def mass_recall(
        self, policy: Policy | None, budget: int, prefill: int = 1, measure: Recall | None = None
    ) -> Float[Tensor, "layers kv_heads"]:
        """Mass recall of a replay, or, where `policy` is None, of the optimum; computed at the first call only.

        `measure` is a quicker way to the same figures, such as `metrics.Received.mass_recall`.
        """
        key = (*_identity(policy), budget, prefill)
        if key not in self._recall:
            expiry = self.oracle(budget, prefill) if policy is None else self.expiry(policy, budget, prefill)
            self._recall[key] = mass_recall(self.trace, expiry) if measure is None else measure(expiry)
        return self._recall[key].clone()

    def regret(
        self, policy: Policy, budget: int, prefill: int = 1, progress: Callable[[int], None] | None = None
    ) -> Float[Tensor, "layers kv_heads"]:
        """Mass recall of the optimum minus that of the replay; `progress` is that of the optimum, as in `fm.oracle`."""
        self.oracle(budget, prefill, progress)
        return self.mass_recall(None, budget, prefill) - self.mass_recall(policy, budget, prefill)

    def has(self, policy: Policy, budget: int, prefill: int = 1) -> bool:
        """Whether `expiry` would answer at once."""
        return (*_identity(policy), budget, prefill) in self._known

    def has_oracle(self, budget: int, prefill: int = 1) -> bool:
        """Whether `oracle` would answer at once: it is known, or nothing need be evicted."""
        return budget >= len(self.trace) or (None, OPTIMUM, budget, prefill) in self._known

    def budgets(self, policy: Policy, prefill: int = 1) -> list[int]:
        """The budgets at which `expiry` would answer at once, in order."""
        who = _identity(policy)
        return sorted(key[2] for key in self._known if key[:2] == who and key[3] == prefill)

    def save(self, path: str | Path) -> Path:
        """Write the optima and the replays of the library's own policies as safetensors and return the path."""
        kept = {key: expiry for key, expiry in self._known.items() if key[0] is None}
        about = {"format": FORMAT, "trace": fingerprint(self.trace), "keys": [key[1:] for key in kept]}
        tensors = {str(row): expiry for row, expiry in enumerate(kept.values())}
        save_file(tensors, path, {"fmlab": json.dumps(about)})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, trace: Trace) -> "Replays":
        """Read what `save` wrote. Raises TraceError for a foreign or truncated file or one of another trace."""
        about, tensors = read_safetensors(path, FORMAT, "Replays(trace).save")
        if about["trace"] != fingerprint(trace):
            raise TraceError(f"{path} holds replays of another trace than {trace!r}; replay this one again")
        shape = (len(trace.layers), trace.kv_heads, len(trace))
        replays = cls(trace)
        for row, (label, budget, prefill) in enumerate(about["keys"]):
            if tuple(tensors[str(row)].shape) != shape:
                raise TraceError(f"{path} holds an expiry of another shape than {shape}; replay the trace again")
            replays._known[None, label, budget, prefill] = tensors[str(row)]
        return replays


def fingerprint(trace: Trace) -> str:
    """A hash of what a replay depends on."""
    digest = hashlib.sha256(
        json.dumps([trace.layers, trace.model, trace.scaling, trace.softcap, trace.windows, trace.query_aware]).encode()
    )
    further = [tensor for tensor in trace.columns.values() if tensor is not None]
    for tensor in (trace.ids, trace.queries, trace.keys, trace.values, *further):
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _identity(policy: Policy | None) -> tuple[tuple[type, ...] | None, str]:
    """The classes, those it wraps among them (None where all are the library's own), and the label; of None, the optimum's."""
    if policy is None:
        return None, OPTIMUM
    kinds = tuple(type(part) for part in within(policy))
    own = all(kind.__module__.startswith("fmlab.policies.") for kind in kinds)
    return (None if own else kinds), repr(policy)


def _dtype(trace: Trace) -> torch.dtype:
    return torch.int16 if len(trace) + 1 < 1 << 15 else torch.int32
