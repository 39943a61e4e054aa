"""The columns of a policy within a policy: under names of their own, so that no two of them meet."""

import torch
from torch import Tensor

from ..core import Stats, View

INSIDE = "inside."


def inside(stats: Stats) -> Stats:
    """The columns of the policy within."""
    return {name.removeprefix(INSIDE): column for name, column in stats.items() if name.startswith(INSIDE)}


def around(stats: Stats, **own: Tensor) -> Stats:
    """The columns of the policy within, and those of the policy around it."""
    return {INSIDE + name: column for name, column in stats.items()} | own


def remembered(view: View, column: Tensor | None, arrived: Tensor) -> Tensor:
    """A column, zeros where there is none yet, with what has just been seen in the new entries."""
    return view.fill_new(torch.zeros_like(view.positions, dtype=arrived.dtype) if column is None else column, arrived)
