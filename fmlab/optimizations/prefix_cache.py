"""Prompts that begin alike: the keys and values of their beginning come from a PrefixCache, or are computed each time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from ..caches import PrefixCache
from . import real
from .pair import Floor, Pair

SHARED = 256  # tokens that all prompts begin with
OWN = 16  # tokens of each prompt behind them


@torch.no_grad()
def reading_again(prompts: Int[Tensor, "prompts tokens"]) -> Float[Tensor, "prompts vocabulary"]:
    """The logits after each prompt, read from its beginning."""
    model = real.lm().model
    logits = torch.empty(len(prompts), model.config.vocab_size)
    for place, ids in enumerate(prompts):
        logits[place] = model(input_ids=ids[None], past_key_values=DynamicCache(), logits_to_keep=1).logits[0, -1]
    return logits


@torch.no_grad()
def looking_up(prompts: Int[Tensor, "prompts tokens"]) -> Float[Tensor, "prompts vocabulary"]:
    """The same with a cache that is empty at first. Every prompt is looked up and inserted whole, as by a server, which
    does not know what the next one will share."""
    model, cache = real.lm().model, PrefixCache()
    logits = torch.empty(len(prompts), model.config.vocab_size)
    for place, ids in enumerate(prompts):
        found = cache.lookup(ids)
        rest = ids[None, found.tokens :]
        logits[place] = model(input_ids=rest, past_key_values=found, logits_to_keep=1).logits[0, -1]
        cache.insert(ids, found)
    return logits


def inputs(size: int, seed: int) -> tuple[Int[Tensor, "prompts tokens"]]:
    """`size` prompts: a stretch of prose that they share, and after it a piece of what follows, another for each."""
    ids = real.text_ids(SHARED + size * OWN, seed)
    own = ids[SHARED:].view(size, OWN)
    return (torch.cat([ids[:SHARED].expand(size, SHARED), own], 1),)


def floor(size: int) -> Floor:
    """What is shared once, what is not for each prompt."""
    tokens = SHARED * (size > 0) + OWN * size
    parameters = real.lm().model.num_parameters()
    return Floor(2 * parameters * tokens, "operations", f"a product and a sum a parameter for each of {tokens} tokens")


PAIR = Pair(
    name="prefix cache",
    claim=None,
    source="this lab: prompts that share a system prompt",
    baseline=reading_again,
    optimised=looking_up,
    inputs=inputs,
    tolerance=1e-3,
    sizes=(1, 2, 4),
    unit=f"prompts that share {SHARED} tokens",
    floor=floor,
    offered_as="fmlab.caches.PrefixCache",
)
