"""One-token calls of several layers settled as one, so that a policy is asked once for all of them.

Thirty layers of three heads cost a policy thirty small computations, or one on ninety rows: the same scores, since a
policy may not care which heads share its view, in a fraction of the time.
"""

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .bag import Bag
from .core import Policy, step
from .slots import Slots
from .view import View, normal_tensors


class Turn(NamedTuple):
    """A layer that has attended and waits for its eviction."""

    layer: int
    slots: Slots
    view: View


class Kin(NamedTuple):
    """What never changes about layers that are settled together."""

    bag: Bag
    limit: Tensor
    window: Tensor | None
    rows: list[slice]


class Together:
    """Collects the turns of a call, then asks the policy once for all layers that hold equally many entries."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.asked: frozenset[str] | None = None  # what the policy asked its views for in the last call; None before it
        self._noted: set[str] = set()
        self._waiting: list[Turn] = []
        self._kin: dict[tuple[int, ...], Kin] = {}

    @property
    def worth(self) -> bool:
        """Whether one view for all pays: not for a policy that reads every key, which lie layer by layer. Where sequences
        have policies of their own, only some of the keys are read, and these are picked out."""
        return self.asked is not None and not self.asked & {"keys", "values"}

    def add(self, turn: Turn) -> None:
        """Wait with this eviction for the other layers."""
        self._waiting.append(turn)

    def forget_kin(self) -> None:
        """The layers hold other sequences than before."""
        self._kin.clear()

    def note(self, view: View) -> None:
        """Remember what the policy asked this view for."""
        self._noted |= view.asked

    def end_call(self) -> None:
        """The last layer has attended: evict in all layers that wait."""
        groups: dict[tuple, list[Turn]] = {}
        for turn in self._waiting:
            _, slots, view = turn
            alike = (
                slots.held,
                slots.budget,
                slots.window is None,
                slots.bag.groups,
                view.scaling,
                view.softcap,
                view.layer.device,
            )
            groups.setdefault(alike, []).append(turn)
        self._waiting = []
        with normal_tensors():
            for turns in groups.values():
                self._settle(turns)
        self.asked, self._noted = frozenset(self._noted), set()

    def _settle(self, turns: list[Turn]) -> None:
        layers = tuple(turn.layer for turn in turns)
        kin = self._kin.get(layers) or self._kin.setdefault(layers, _kin([turn.slots for turn in turns]))
        first = turns[0]
        positions = torch.cat([turn.slots.staged_positions() for turn in turns])
        columns = [turn.slots.staged_stats() for turn in turns]
        stats = {name: torch.cat([column[name] for column in columns]) for name in columns[0]}
        first.slots.meter.pass_by(positions, *stats.values())
        view = View(
            kin.bag,
            positions,
            1,
            kin.limit,
            newest=first.slots.seen,
            window=kin.window,
            scaling=first.view.scaling,
            softcap=first.view.softcap,
            query_aware=first.view.query_aware,
            keys=lambda: torch.cat([turn.view.keys for turn in turns]),
            values=lambda: torch.cat([turn.slots.staged("values") for turn in turns]),
            queries=lambda: torch.cat([turn.view.queries for turn in turns]),
            new_keys=lambda: torch.cat([turn.view.new_keys for turn in turns]),
            rows_of=lambda name, rows: _picked(name, rows, turns),
            new_values=lambda: torch.cat([turn.view.new_values for turn in turns]),
            prepared={name: _joined(name, turns) for name in self.policy.needs},
            attended=lambda: torch.cat([turn.view.weights(1) for turn in turns]),
        )
        observed, evicted = step(self.policy, stats, view, first.slots.budget)
        for turn, rows in zip(turns, kin.rows, strict=True):
            mine = {name: column[rows] for name, column in observed.items()}
            turn.slots.settle(mine, None if evicted is None else evicted[rows])
        self.note(view)


def _joined(name: str, turns: list[Turn]) -> Callable:
    """What the views of these turns were given for a need of the policy, as one; a rotary embedding is the model's."""
    made = [turn.view.prepared(name) for turn in turns]
    return made[0] if name == "pre_rope" else lambda: torch.cat([make() for make in made])


def _picked(name: str, rows: Tensor, turns: list[Turn]) -> Tensor:
    """Some rows of a column of all turns; `rows` ascend."""
    found, start = [], 0
    for turn in turns:
        heads = len(turn.slots.bag)
        mine = rows[(rows >= start) & (rows < start + heads)] - start
        found.append(getattr(turn.view, name).index_select(0, mine))
        start += heads
    return torch.cat(found)


def _kin(slots: list[Slots]) -> Kin:
    ends = accumulate((len(each.bag) for each in slots), initial=0)
    window = None if slots[0].window is None else torch.cat([each.window for each in slots])
    return Kin(
        Bag.join([each.bag for each in slots]),
        torch.cat([each.limit for each in slots]),
        window,
        [slice(*pair) for pair in pairwise(ends)],
    )
