"""A grid of policies and budgets over one context: the context is read once and forked, or read again for every cell."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..forks import Cell, prefill
from ..live import finite
from ..policies import H2O, TOVA, KeyNorm, SinkWindow
from . import real
from .pair import Floor, Pair

CONTEXT = 256  # tokens that all cells share
FURTHER = 4  # tokens that each cell reads behind them, in one call: nothing is evicted that the logits depend on
BUDGETS = (128, 64)
POLICIES = (SinkWindow(), KeyNorm(), H2O(), TOVA())


@torch.no_grad()
def reading_again(context: Tensor, further: Tensor, cells: tuple[Cell, ...]) -> Float[Tensor, "cells n vocabulary"]:
    """Every cell reads the context under its own policy, then the further tokens."""
    model = real.lm().model
    logits = further.new_empty(len(cells), len(further), model.config.vocab_size, dtype=torch.float32)
    for cell, (policy, budget) in enumerate(cells):
        with finite(model, policy, budget) as cache:
            model(input_ids=context[None], past_key_values=cache, logits_to_keep=1)
            logits[cell] = model(input_ids=further[None], past_key_values=cache).logits[0]
    return logits


def forking(context: Tensor, further: Tensor, cells: tuple[Cell, ...]) -> Float[Tensor, "cells n vocabulary"]:
    """The context is read once; the cells are forked from it and go on one by one, so that only the reading is saved."""
    lm = real.lm()
    logits = further.new_empty(len(cells), len(further), lm.model.config.vocab_size, dtype=torch.float32)
    read = prefill(lm, context) if cells else None
    for cell, each in enumerate(cells):
        logits[cell] = read.fork([each]).logits(further)[0]
    return logits


def inputs(size: int, seed: int) -> tuple[Tensor, Tensor, tuple[Cell, ...]]:
    """A context, what follows it in the text, and `size` cells: the policies in turn at one budget, then at the next."""
    ids = real.text_ids(CONTEXT + FURTHER, seed)
    grid = [(policy, budget) for budget in BUDGETS for policy in POLICIES]
    return ids[:CONTEXT], ids[CONTEXT:], tuple(grid[cell % len(grid)] for cell in range(size))


def floor(size: int) -> Floor:
    """The context once, and the further tokens in each cell."""
    tokens = CONTEXT * (size > 0) + FURTHER * size
    parameters = real.lm().model.num_parameters()
    return Floor(2 * parameters * tokens, "operations", f"a product and a sum a parameter for each of {tokens} tokens")


PAIR = Pair(
    name="shared prefill",
    claim=None,
    source="this lab: every comparison of policies on one context",
    baseline=reading_again,
    optimised=forking,
    inputs=inputs,
    tolerance=1e-3,
    sizes=(1, 2, 4),
    unit=f"cells of {CONTEXT} tokens",
    floor=floor,
    used_in="fmlab.forks.Prefill.fork",
)
