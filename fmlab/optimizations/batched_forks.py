"""Forks of one prefill decode as one batch, or one after the other."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..forks import Cell, Prefill, prefill
from ..policies import Random, SinkWindow, SlidingWindow
from . import real
from .pair import Floor, Pair

CONTEXT = 256  # tokens of the prefill
STEPS = 3  # tokens decoded one at a time behind it
BUDGETS = (128, 64)
# Scores by place alone: those of two nearly equal keys may change order by what a batch rounds otherwise.
POLICIES = (SinkWindow(), SlidingWindow(), Random(0), Random(1))


def one_by_one(read: Prefill, further: Tensor, cells: tuple[Cell, ...]) -> Float[Tensor, "cells n vocabulary"]:
    """Every cell is forked and decodes alone, in a batch of 1."""
    logits = _empty(read, further, cells)
    for cell, each in enumerate(cells):
        logits[cell] = read.fork([each]).logits(further, chunk=1)[0]
    return logits


def as_one_batch(read: Prefill, further: Tensor, cells: tuple[Cell, ...]) -> Float[Tensor, "cells n vocabulary"]:
    """All cells are forked together and decode as one batch; a grid without cells is no grid to fork."""
    return read.fork(cells).logits(further, chunk=1) if cells else _empty(read, further, cells)


def inputs(size: int, seed: int) -> tuple[Prefill, Tensor, tuple[Cell, ...]]:
    """A context that has been read, what follows it in the text, and `size` cells over the budgets and policies."""
    ids = real.text_ids(CONTEXT + STEPS, seed)
    grid = [(policy, budget) for budget in BUDGETS for policy in POLICIES]
    cells = tuple(grid[cell % len(grid)] for cell in range(size))
    return prefill(real.lm(), ids[:CONTEXT]), ids[CONTEXT:], cells


def floor(size: int) -> Floor:
    """The weights once a step, whatever the batch is: a decode step waits for memory, not for arithmetic."""
    weights = sum(parameter.nbytes for parameter in real.lm().model.parameters())
    return Floor(weights * STEPS * (size > 0), "bytes", f"the weights, read in each of {STEPS} steps")


def _empty(read: Prefill, further: Tensor, cells: tuple[Cell, ...]) -> Tensor:
    vocabulary = read.lm.model.config.vocab_size
    return torch.empty(len(cells), len(further), vocabulary, dtype=read.dtype, device=further.device)


PAIR = Pair(
    name="batched forks",
    claim=None,
    source="this lab: the cells of a grid decode together",
    baseline=one_by_one,
    optimised=as_one_batch,
    inputs=inputs,
    tolerance=1e-3,
    sizes=(1, 4, 8),
    unit="cells",
    floor=floor,
    used_in="fmlab.forks.Forks.logits",
)
