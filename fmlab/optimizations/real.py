"""The real things that pairs work on: the model, its tokenizer, prose, an encoder; each loaded once."""

import random
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from ..conversation import MiniLM
from ..language import LanguageModel
from ..models import load
from ..texts import paragraphs


@cache
def lm() -> LanguageModel:
    """SmolLM2-135M-Instruct, float32 on the CPU."""
    return load()


@cache
def encoder() -> MiniLM:
    """all-MiniLM-L6-v2."""
    return MiniLM()


@cache
def _prose() -> Int[Tensor, " tokens"]:
    return lm().ids("\n\n".join(paragraphs()))


def text_ids(tokens: int, seed: int) -> Int[Tensor, " tokens"]:
    """A stretch of the prose that every Python ships, as ids of the model's tokens, from a place that the seed draws.

    The prose is a ring: past its end comes its beginning.
    """
    prose = _prose()
    start = random.Random(seed).randrange(len(prose))
    return prose[(start + torch.arange(tokens)) % len(prose)]
