"""A conversation of many turns: the KV cache is carried from prompt to prompt, or everything is read again each turn."""

import random

import torch
from jaxtyping import Float
from torch import Tensor

from ..conversation import dialogues, prompt, spans
from ..conversation.carry import Carried
from . import real
from .pair import Floor, Pair


@torch.no_grad()
def reading_again(prompts: tuple[list[int], ...]) -> Float[Tensor, "turns vocabulary"]:
    """The logits after each turn's prompt, read from its beginning."""
    model = real.lm().model
    logits = torch.empty(len(prompts), model.config.vocab_size)
    for turn, ids in enumerate(prompts):
        logits[turn] = model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1]
    return logits


def carrying(prompts: tuple[list[int], ...]) -> Float[Tensor, "turns vocabulary"]:
    """The same, each turn reading only what it adds: the last answer and the new message."""
    lm = real.lm()
    carried, logits = Carried(lm), torch.empty(len(prompts), lm.model.config.vocab_size)
    for turn, ids in enumerate(prompts):
        logits[turn] = carried.logits(ids)
    return logits


def inputs(size: int, seed: int) -> tuple[tuple[list[int], ...]]:
    """The prompts of `size` turns of one of the lab's dialogues: each holds all that was said before.

    Each message says its first sentence, so that many turns are measured in little time. Nothing is generated, in
    either way: this is the time to the first token. The dialogue is a ring: past its end comes its beginning.
    """
    tokenizer = real.lm().tokenizer
    messages = random.Random(seed).choice(dialogues()).messages
    said = [dict(messages[turn % len(messages)]) for turn in range(2 * size)]
    for message in said:
        message["content"] = message["content"].split(". ")[0]
    whole = spans(said, tokenizer)
    return (tuple(prompt(whole[: 2 * turn + 1], tokenizer) for turn in range(size)),)


def floor(size: int) -> Floor:
    """Every token of the last prompt once; here that of the dialogue which seed 0 draws."""
    (prompts,) = inputs(size, 0)
    tokens = len(prompts[-1]) if prompts else 0
    parameters = real.lm().model.num_parameters()
    return Floor(2 * parameters * tokens, "operations", f"a product and a sum a parameter for each of {tokens} tokens")


PAIR = Pair(
    name="KV carry-over",
    claim=(3.0, 10.0),
    source="a chat toolkit of others: 51x in its change log, 3-10x later; its readers were told both",
    baseline=reading_again,
    optimised=carrying,
    inputs=inputs,
    tolerance=1e-3,
    sizes=(1, 4, 8),
    unit="turns",
    floor=floor,
    used_in="fmlab.conversation.carry.Carried",
)
